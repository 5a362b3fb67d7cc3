"""Initial weights under Keras's names, drawn by `torch.nn.init`.

An initializer is called as `init(shape, dtype, device, generator)` and returns a tensor in Keras's layout, where
`fan_in = shape[-2]` and `fan_out = shape[-1]`: the transpose of what `torch.nn.init` assumes.

>>> get("glorot_uniform")
GlorotUniform(seed=None)

Source: `tf.keras.initializers` (v2.9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._identifiers import Configurable, Registry, name_classes

# The standard deviation of a unit normal cut at two deviations (Keras's constant, scipy.stats.truncnorm.std(-2, 2)).
TRUNCATED_STDDEV = 0.87962566103423978


class Initializer(Configurable):
    """The base: allocates, picks the generator, and leaves the values to `fill`."""

    seed: int | None = None

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        """Write the initial values into `tensor` in place."""
        raise NotImplementedError(f"{type(self).__name__} has no `fill`")

    def __call__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return a new tensor of initial values.

        Args:
            shape: the weight's shape in Keras's layout.
            dtype: a floating dtype; half precision is drawn in float32 and rounded once.
            device: where the tensor lives, default torch's current device.
            generator: the source of randomness; it wins over `seed`. With neither, torch's global one.
        """
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        tensor = torch.empty(tuple(shape), dtype=wide, device=device)
        if generator is None and self.seed is not None and tensor.device.type != "meta":
            generator = torch.Generator(tensor.device).manual_seed(self.seed)
        with torch.no_grad():
            self.fill(tensor, generator)
        return tensor.to(dtype)


class Zeros(Initializer):
    """0 everywhere."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        torch.nn.init.zeros_(tensor)


class Ones(Initializer):
    """1 everywhere."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        torch.nn.init.ones_(tensor)


class Constant(Initializer):
    """One value, or an array of values that has as many elements as the weight."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        value = self.value
        if isinstance(value, Mapping):
            # Keras 3 writes an array as {"class_name": "__numpy__", "config": {"value": ..., "dtype": ...}}.
            value = value["config"]["value"]
        values = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)
        if values.numel() not in (1, tensor.numel()):
            raise ValueError(f"`value` has shape {tuple(values.shape)}, the weight has shape {tuple(tensor.shape)}")
        tensor.copy_(values if values.numel() == 1 else values.reshape(tensor.shape))

    def get_config(self) -> dict[str, Any]:
        return {"value": self.value}


class RandomUniform(Initializer):
    """Uniform on [minval, maxval)."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        self.minval, self.maxval, self.seed = minval, maxval, seed

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        torch.nn.init.uniform_(tensor, self.minval, self.maxval, generator=generator)

    def get_config(self) -> dict[str, Any]:
        return {"minval": self.minval, "maxval": self.maxval, "seed": self.seed}


class RandomNormal(Initializer):
    """Normal with `mean` and `stddev`."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        self.mean, self.stddev, self.seed = mean, stddev, seed

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        torch.nn.init.normal_(tensor, self.mean, self.stddev, generator=generator)

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "stddev": self.stddev, "seed": self.seed}


class TruncatedNormal(RandomNormal):
    """Normal with `mean` and `stddev`, cut at two standard deviations (before the cut)."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        _truncated_normal(tensor, self.mean, self.stddev, generator)


class VarianceScaling(Initializer):
    """Zero mean and variance `scale / n`, n being the fan in, the fan out or their mean.

    Raises:
        ValueError: `scale <= 0`, or an unknown `mode` or `distribution`.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
    ) -> None:
        if scale <= 0:
            raise ValueError(f"`scale` must be positive float. Received: scale={scale}.")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"Invalid `mode` argument: {mode!r}. Please use one of fan_in, fan_out, fan_avg")
        distribution = distribution.lower()
        distribution = "truncated_normal" if distribution == "normal" else distribution
        if distribution not in ("uniform", "truncated_normal", "untruncated_normal"):
            raise ValueError(
                f"Invalid `distribution` argument: {distribution!r}. "
                "Please use one of uniform, truncated_normal, untruncated_normal"
            )
        self.scale, self.mode, self.distribution, self.seed = scale, mode, distribution, seed

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        fan_in, fan_out = compute_fans(tensor.shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            torch.nn.init.uniform_(tensor, -limit, limit, generator=generator)
        elif self.distribution == "truncated_normal":
            _truncated_normal(tensor, 0.0, math.sqrt(variance) / TRUNCATED_STDDEV, generator)
        else:
            torch.nn.init.normal_(tensor, 0.0, math.sqrt(variance), generator=generator)

    def get_config(self) -> dict[str, Any]:
        return {"scale": self.scale, "mode": self.mode, "distribution": self.distribution, "seed": self.seed}


class _SeedOnly(VarianceScaling):
    # The six named rules differ in three constants; their config holds the seed alone, as in Keras.
    rule: tuple[float, str, str]

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(*self.rule, seed=seed)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


class GlorotUniform(_SeedOnly):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""

    rule = (1.0, "fan_avg", "uniform")


class GlorotNormal(_SeedOnly):
    """Truncated normal, variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""

    rule = (1.0, "fan_avg", "truncated_normal")


class HeUniform(_SeedOnly):
    """Uniform on +-sqrt(6 / fan_in) (He et al. 2015)."""

    rule = (2.0, "fan_in", "uniform")


class HeNormal(_SeedOnly):
    """Truncated normal, variance 2 / fan_in (He et al. 2015)."""

    rule = (2.0, "fan_in", "truncated_normal")


class LecunUniform(_SeedOnly):
    """Uniform on +-sqrt(3 / fan_in) (LeCun et al. 1998)."""

    rule = (1.0, "fan_in", "uniform")


class LecunNormal(_SeedOnly):
    """Truncated normal, variance 1 / fan_in (LeCun et al. 1998)."""

    rule = (1.0, "fan_in", "truncated_normal")


class Orthogonal(Initializer):
    """`gain` times a matrix with orthonormal rows or columns, whichever are fewer (Saxe et al. 2013).

    The matrix is the whole weight, so the gate blocks of a recurrent kernel are not orthogonal each.

    Raises:
        ValueError: a weight with fewer than two axes.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        self.gain, self.seed = gain, seed

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        if tensor.ndim < 2:
            raise ValueError(f"Orthogonal needs a weight of at least two axes. Received: shape={tuple(tensor.shape)}.")
        # torch flattens all but the first axis, Keras all but the last.
        torch.nn.init.orthogonal_(tensor.view(-1, tensor.shape[-1]), self.gain, generator=generator)

    def get_config(self) -> dict[str, Any]:
        return {"gain": self.gain, "seed": self.seed}


class Identity(Initializer):
    """`gain` on the main diagonal, 0 elsewhere; two axes only, ValueError otherwise."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        if tensor.ndim != 2:
            raise ValueError(f"Identity needs a weight of two axes. Received: shape={tuple(tensor.shape)}.")
        torch.nn.init.eye_(tensor).mul_(self.gain)

    def get_config(self) -> dict[str, Any]:
        return {"gain": self.gain}


def draw(init: Callable[..., Any] | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what `init` gives for a weight: an `Initializer`, or a callable of (shape, dtype) as Keras has them.

    None stands for `GlorotUniform`, as in Keras.

    Raises:
        ValueError: it gives another shape. TypeError: it gives no numbers.
    """
    init = GlorotUniform() if init is None else init
    if isinstance(init, Initializer):
        return init(shape, dtype=dtype, device=device)
    value = init(shape, dtype=dtype)
    try:
        value = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value), dtype=dtype, device=device)
    except (TypeError, ValueError):
        raise TypeError(f"The initializer {init!r} gave {type(value).__name__} for a weight of shape {shape}") from None
    if value.shape != shape:
        raise ValueError(f"The initializer {init!r} gave shape {tuple(value.shape)} for a weight of shape {shape}")
    return value


def compute_fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight in Keras's layout; leading axes are a receptive field."""
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


def _truncated_normal(tensor: Tensor, mean: float, stddev: float, generator: torch.Generator | None) -> None:
    torch.nn.init.trunc_normal_(tensor, mean, stddev, mean - 2 * stddev, mean + 2 * stddev, generator=generator)


glorot_uniform, glorot_normal = GlorotUniform, GlorotNormal
he_uniform, he_normal = HeUniform, HeNormal
lecun_uniform, lecun_normal = LecunUniform, LecunNormal
random_uniform = uniform = RandomUniform
random_normal = normal = RandomNormal
truncated_normal, variance_scaling = TruncatedNormal, VarianceScaling
orthogonal, identity, constant = Orthogonal, Identity, Constant
zeros = zero = Zeros
ones = one = Ones

TABLE = name_classes(
    (GlorotUniform, GlorotNormal, HeUniform, HeNormal, LecunUniform, LecunNormal, RandomUniform, RandomNormal,
     TruncatedNormal, VarianceScaling, Orthogonal, Identity, Constant, Zeros, Ones),
    uniform=RandomUniform, normal=RandomNormal, zero=Zeros, one=Ones,
    OrthogonalInitializer=Orthogonal,  # as Keras 3.0 to 3.6 calls it in its configurations
)  # fmt: skip
registry = Registry("initializer", TABLE)
get, serialize, deserialize = registry.get, registry.serialize, registry.deserialize
