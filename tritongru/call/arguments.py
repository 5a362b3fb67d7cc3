"""What a caller says: the arguments of `tritongru.gru` or `tritongru.scan`, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


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
