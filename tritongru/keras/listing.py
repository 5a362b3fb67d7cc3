"""What Keras tells of any layer's weights, for one GRU and for the two of a Bidirectional alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from .arguments import to_tensor


class Part(Protocol):
    """What holds the weights of one GRU."""

    name: str
    recurrent_kernel: Parameter

    @property
    def built(self) -> bool: ...
    @property
    def losses(self) -> list[Tensor]: ...
    def parameters(self) -> Iterator[Parameter]: ...
    def apply_constraints(self) -> None: ...
    def _named_weights(self) -> list[tuple[str, Parameter]]: ...
    def _write(self, name: str, value: Tensor) -> None: ...


class WeightedLayer:
    """The weights of a layer in Keras's order, their losses and their constraints."""

    name: str

    @property
    def _parts(self) -> tuple[Part, ...]:
        """The layers that hold the weights, in Keras's order."""
        raise NotImplementedError(f"{type(self).__name__} has no `_parts`")

    @property
    def built(self) -> bool:
        """Whether the weights exist."""
        return all(part.built for part in self._parts)

    @property
    def weights(self) -> list[Parameter]:
        """[kernel, recurrent_kernel, bias] of each part; empty before they are built."""
        return [parameter for part in self._parts for _, parameter in part._named_weights()]

    @property
    def trainable_weights(self) -> list[Parameter]:
        """The weights that ask for a gradient."""
        return [weight for weight in self.weights if weight.requires_grad]

    @property
    def non_trainable_weights(self) -> list[Parameter]:
        """The weights that do not."""
        return [weight for weight in self.weights if not weight.requires_grad]

    def count_params(self) -> int:
        """Return the number of values in the weights.

        Raises:
            ValueError: they do not exist yet.
        """
        if not self.built:
            raise ValueError(f"the layer {self.name} is not built: it has no weights to count yet")
        return sum(weight.numel() for weight in self.weights)

    @property
    def trainable(self) -> bool:
        """Whether any weights ask for a gradient; may be set, for all of them."""
        return any(part.recurrent_kernel.requires_grad for part in self._parts)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for part in self._parts:
            for parameter in part.parameters():
                parameter.requires_grad = bool(value)

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of `weights` as arrays; empty before they are built."""
        weights = [weight.detach().cpu() for weight in self.weights]
        return [np.array((w.float() if w.dtype == torch.bfloat16 else w).numpy()) for w in weights]

    @torch.no_grad()
    def set_weights(self, weights) -> None:
        """Copy arrays or tensors, in the order of `get_weights`, into the weights.

        Raises:
            ValueError: a wrong number of them (also before they are built) or a wrong shape; then nothing is copied.
            TypeError: no list, or something that is no array of real numbers; nor is anything then.
        """
        if isinstance(weights, (str, bytes)) or not hasattr(weights, "__len__"):
            raise TypeError(f"`weights` must be a list of arrays, got {weights!r}")
        named = [(part, name, weight) for part in self._parts for name, weight in part._named_weights()]
        if len(weights) != len(named):
            raise ValueError(
                f"You called `set_weights(weights)` on layer {self.name} with a weight list of length {len(weights)}, "
                f"but the layer was expecting {len(named)} weights."
            )
        values = [to_tensor(f"weights[{place}]", value).detach() for place, value in enumerate(weights)]
        for place, ((part, name, weight), value) in enumerate(zip(named, values, strict=True)):
            if value.is_complex():
                raise TypeError(f"`weights[{place}]` must be real, got {value.dtype}")
            if weight.shape != value.shape:
                raise ValueError(
                    f"Layer {part.name} weight shape {tuple(weight.shape)} of `{name}` is not compatible with "
                    f"provided weight shape {tuple(value.shape)}."
                )
        for (part, name, _), value in zip(named, values, strict=True):
            part._write(name, value)

    @property
    def losses(self) -> list[Tensor]:
        """The losses of each part."""
        return [term for part in self._parts for term in part.losses]

    def regularization_loss(self) -> Tensor:
        """Return the sum of `losses`, zero without any."""
        like, terms = self._parts[0].recurrent_kernel, self.losses
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=like.dtype, device=like.device)

    def apply_constraints(self) -> None:
        """Project each weight that is trained onto its constraint; to be called after `optimizer.step()`."""
        for part in self._parts:
            part.apply_constraints()

    def apply_constraints_after(self, optimizer: torch.optim.Optimizer):
        """Apply the constraints after each step of `optimizer`; returns the hook's handle, to remove it."""
        return optimizer.register_step_post_hook(lambda *_: self.apply_constraints())
