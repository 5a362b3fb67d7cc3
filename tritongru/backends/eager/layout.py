"""How the eager scan lays out its gates in memory, and which steps it takes at a time.

The gates of a step lie side by side in one row, so that each product of a step has one destination and adds to it:

    reset_after=True    (.., 4U):  h R_h + c_h | first | second | n
    reset_after=False   (.., 3U):                first | second | n

`first` and `second` are z and r in the weights' order. `x W + b` is written to the last three blocks, `h R` is added to
the first three (to the two of z and r without reset_after), and the activations are applied where the sums lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import TABLE
from ...call.problem import Variant

# Elements of one chunk of gates: half a mebibyte in float32, which was no slower than any size up to 4 MiB, and faster
# than none, on one core of a Xeon (docs/cpu.md).
CHUNK = 1 << 17
# Fewer rows than this make the products of the weights' gradients slow. An estimate.
CHUNK_ROWS = 256


class Gates(NamedTuple):
    """Views of one packed tensor (.., 4U or 3U). `gh_n` is h R_h + c_h; None without reset_after."""

    recurrent: Tensor
    projected: Tensor
    zr: Tensor
    z: Tensor
    r: Tensor
    n: Tensor
    gh_n: Tensor | None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype states and sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gate_width(variant: Variant) -> int:
    """Return how many blocks of U columns are packed."""
    return 4 if variant.reset_after else 3


def view_gates(packed: Tensor, variant: Variant) -> Gates:
    """Return the parts of the last axis of `packed` (.., 4U or 3U)."""
    U = packed.shape[-1] // gate_width(variant)
    return view_parts(packed[..., :-U], packed[..., -U:], packed[..., -3 * U :], variant)


def view_parts(recurrent: Tensor, n: Tensor, projected: Tensor, variant: Variant) -> Gates:
    """Return the parts of the last axis of the blocks that `h R` is added to, with the last block `n` beside them."""
    *gh_n, first, second = recurrent.chunk(gate_width(variant) - 1, dim=-1)
    z, r = (second, first) if variant.reset_gate_first else (first, second)
    zr = recurrent[..., -2 * n.shape[-1] :]
    return Gates(recurrent, projected, zr, z, r, n, gh_n[0] if gh_n else None)


class Steps:
    """The rows of all steps, one step below the other: B for each, or fewer where rows end (`packing`).

    Attributes:
        sizes: rows of each step. starts: first row of each step, and the number of all rows.
    """

    def __init__(self, sizes: Sequence[int]):
        self.sizes = sizes
        self.starts = [0, *itertools.accumulate(sizes)]

    def rows(self, begin: int, end: int) -> slice:
        """Return the rows of the steps begin..end."""
        return slice(self.starts[begin], self.starts[end])

    def count(self, begin: int, end: int) -> int:
        """Return how many rows the steps begin..end have."""
        return self.starts[end] - self.starts[begin]

    def read(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Return the rows of the steps begin..end of `x`, (N,..) or (T,B,..)."""
        return x[begin:end].flatten(0, 1) if x.dim() == 3 else x[self.rows(begin, end)]

    def split(self, rows: Tensor, begin: int, end: int) -> Sequence[Tensor]:
        """Return the rows of the steps begin..end, step by step."""
        # Views made by one call cost far less than views made inside the loop over time.
        return rows.split(self.sizes[begin:end]) if begin < end else ()

    def split_all(self, parts: Sequence[Tensor], begin: int, end: int) -> list[tuple[Tensor, ...]]:
        """Return the rows of several tensors, step by step."""
        return list(zip(*(self.split(part, begin, end) for part in parts), strict=True))

    def chunks(self, width: int, reverse: bool) -> Iterator[tuple[int, int]]:
        """Yield the bounds (begin, end) of chunks of steps in the order of processing; `width` is that of the gates."""
        T = len(self.sizes)
        first, rows = 0, 0
        for step in range(T):
            size = self.sizes[T - 1 - step if reverse else step]
            if step > first and rows >= CHUNK_ROWS and (rows + size) * width > CHUNK:
                yield (T - step, T - first) if reverse else (first, step)
                first, rows = step, 0
            rows += size
        if first < T:
            yield (0, T - first) if reverse else (first, T)


def split_gates(weights: Tensor, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """Return the z, r and h parts of the last axis (.., 3U) of weights, as views."""
    first, second, n = weights.chunk(3, dim=-1)
    return (second, first, n) if variant.reset_gate_first else (first, second, n)


def split_drop(drop: Tensor | None, variant: Variant) -> tuple:
    """Return the masks (B,U) of gates z, r, h; None where there is no dropout."""
    if drop is None:
        return None, None, None
    if drop.shape[0] == 1:
        return drop[0], drop[0], drop[0]
    return (drop[1], drop[0], drop[2]) if variant.reset_gate_first else (drop[0], drop[1], drop[2])


def resize(rows: Tensor, size: int, joining: Tensor, leaving: Tensor) -> Tensor:
    """Return the first `size` rows: of those that are not there yet `joining`; what leaves is written to `leaving`."""
    now = rows.shape[0]
    if size > now:
        return torch.cat((rows, joining[now:size]))
    leaving[size:now] = rows[size:]
    return rows[:size]


def entering_states(
    after: Tensor, begin: int, end: int, h0: Tensor, resets: Tensor | None, fresh: Tensor | None, variant: Variant
) -> Tensor:
    """Return the states entering steps begin..end, (K,B,U), of the states leaving each step, `after` (T,B,U)."""
    if begin == end:
        return after[begin:end]
    T = after.shape[0]
    h0 = h0[None].to(after.dtype)
    if variant.reverse:
        before = torch.cat((after[begin + 1 : end], h0)) if end == T else after[begin + 1 : end + 1]
    else:
        before = after[begin - 1 : end - 1] if begin else torch.cat((h0, after[: end - 1]))
    if resets is None:
        return before
    if fresh is None:
        return before.masked_fill(resets[begin:end, :, None], 0.0)
    return torch.where(resets[begin:end, :, None], fresh[begin:end] if fresh.dim() == 3 else fresh, before)


def entering_rows(after: Tensor, steps: Steps, begin: int, end: int, h0: Tensor, variant: Variant) -> Tensor:
    """Return the states entering packed steps begin..end, of the states leaving each step, `after` (N,U)."""
    parts = []
    for t in range(begin, end):
        before = t + (1 if variant.reverse else -1)
        there = steps.sizes[before] if 0 <= before < len(steps.sizes) else 0
        here = min(there, steps.sizes[t])
        if here:
            start = steps.starts[before]
            parts.append(after[start : start + here])
        parts.append(h0[here : steps.sizes[t]].to(after.dtype))
    return torch.cat(parts)


def drop_rows(h: Tensor, m: Tensor | None) -> Tensor:
    """Return the rows `h` (K*B,U) of K steps times the mask (B,U) of each step; `h` where there is none."""
    # A batch of no rows does not say how many steps there are.
    return h if m is None or not h.numel() else (h.view(-1, *m.shape) * m).view(h.shape)


def steps_with(flags: Tensor | None, T: int) -> list[bool]:
    """Return for every step whether any row has its flag set; `flags` (T,B) bool or None for nowhere."""
    if flags is None:
        return [False] * T
    # Reading the flags of an accelerator back would stop it: there every step is taken to have some.
    return flags.any(1).tolist() if flags.device.type == "cpu" else [True] * T


def product_like(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Return left' right (K,N), laid out as `weight` is, so that autograd need not copy it to a parameter's layout."""
    if weight.stride(0) == 1 and weight.stride(1) != 1:
        return (right.t() @ left).t()
    return left.t() @ right


def product_adder(weights: Tensor) -> Callable[..., Tensor]:
    """Return how to add a product in place, (sums, rows, weights): of members, where they have an axis, of each."""
    return torch.Tensor.addmm_ if weights.dim() == 2 else torch.Tensor.baddbmm_


def in_place(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation `name` as a function that overwrites its argument."""
    function = TABLE[name].function
    return _IN_PLACE.get(name) or (lambda value: value.copy_(function(value)))


def pull_back(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (d, y) -> d * f'(x), with y = f(x), that overwrites d."""
    derivative = TABLE[name].derivative
    assert derivative is not None
    return _PULL_BACK.get(name) or (lambda d, y: d.mul_(derivative(y)))


_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "relu": torch.relu_,
    "linear": lambda value: value,
}
_PULL_BACK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda d, y: torch.ops.aten.tanh_backward.grad_input(d, y, grad_input=d),
    "sigmoid": lambda d, y: torch.ops.aten.sigmoid_backward.grad_input(d, y, grad_input=d),
    "linear": lambda d, y: d,
}
