"""What a caller says: the arguments of `tritongru.gru` or `tritongru.scan`, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Named = TypeVar("Named", bound=Any)


def changed(values: Named, **fields: Any) -> Named:
    """Return a named tuple with other values in some of its fields, as `_replace`, which torch 2.6 cannot compile."""
    if not torch.compiler.is_compiling():
        return values._replace(**fields)
    kind = type(values)
    return kind(*[fields.get(name, value) for name, value in zip(kind._fields, values, strict=True)])


class LayerNorm(NamedTuple):
    """Layer normalisation inside of a GRU, over the 3U sums of all gates of a row.

    "separate": gx = LN(x W) * scale[0] + b, gh = LN(h R) * scale[1] + c. "joint": p = LN(x W + h R) * scale, and then
    gx = b, gh = p + c. In both z, r = g(gx + gh), n = f(gx_h + r * gh_h).

    Attributes:
        kind: "separate" or "joint".
        scale: (2,3U) for "separate", (3U,) for "joint" and for a scan of given gates, whose input side is not
            normalised here; in the gate order of the weights; None for ones. The shift is the biases' part.
        epsilon: added to the variance.

    Source: Ba et al. 2016 (arXiv 1607.06450); "separate" as in haste, "joint" as in the cell of DreamerV2.
    """

    kind: str
    scale: Tensor | None = None
    epsilon: float = 1e-5


class Arguments(NamedTuple):
    """The arguments of `tritongru.gru`, as they came or in plain form (`check.check`).

    Those of `tritongru.scan` have no kernel: `x` are then the gates' inputs, and `bias` the recurrent one alone.
    """

    x: Tensor
    kernel: Tensor | None
    recurrent_kernel: Tensor
    bias: Tensor | Sequence[Tensor] | None = None
    initial_state: Tensor | None = None
    activation: str | Callable | None = "tanh"
    recurrent_activation: str | Callable | None = "sigmoid"
    reset_after: bool = True
    mask: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_state: Tensor | str | None = None
    input_dropout: Tensor | Sequence[Tensor] | None = None
    recurrent_dropout: Tensor | Sequence[Tensor] | None = None
    zero_output_for_mask: bool = False
    go_backwards: bool = False
    time_major: bool = False
    layout: str = "keras"
    precision: str = "auto"
    recompute: bool = False
    zoneout: Tensor | None = None
    gradient_clip: float | None = None
    layer_norm: LayerNorm | str | None = None

    @property
    def batch(self) -> int:
        """B."""
        return self.x.shape[1 if self.time_major else 0]

    @property
    def time(self) -> int:
        """T."""
        return self.x.shape[0 if self.time_major else 1]

    def by_time(self, value: Tensor) -> Tensor:
        """Return `value`, whose first two axes are those of x, with time first."""
        return value if self.time_major else value.transpose(0, 1)

    def in_order_of_processing(self, outputs: Tensor) -> Tensor:
        """Return `outputs`, which are at the time index of the input, in the order in which they were computed."""
        return outputs.flip(0 if self.time_major else 1) if self.go_backwards else outputs
