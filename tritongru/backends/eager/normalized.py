"""Layer normalisation of the recurrent sums, one row of all gates at a time (docs/math.md).

    separate   gh = LN(h R) s + c                          what comes from the input is normalised before the scan
    joint      p = LN(x W + h R) s;  gh = p + c, gx = b    one norm for both sides

LN(a) = (a - mean a) / sqrt(var a + epsilon) over the 3U sums of a row. A row is laid out as the packed gates are, the
candidate's block first. The normalised sums are not kept for the backward pass: one product for a chunk of steps
makes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...call.problem import Variant
from .layout import Gates, drop_rows, in_place, split_drop, view_gates


class Norms(NamedTuple):
    """What the backward pass needs of the norms of some rows, (N,3U) and (N,1) for `rstd`.

    Attributes:
        sums: normalised. d_sums: space for the gradient of the sums before the norm.
    """

    sums: Tensor
    rstd: Tensor
    d_sums: Tensor


class Normalization:
    """The recurrent product and its norm, in the dtype of sums; weights in the order of the packed gates."""

    def __init__(self, u: Tensor, drop: Tensor | None, scale: Tensor, variant: Variant, dtype: torch.dtype):
        """Pack the weights: u (U,3U), scale (3U,), both in the weights' order."""
        self.variant, self.joint = variant, variant.layer_norm == "joint"
        self.scale = candidate_first(scale.to(dtype))
        self.u = candidate_first(u.to(dtype))
        self.ut = self.u.t().contiguous()
        masks = (m if m is None else m.to(dtype) for m in split_drop(drop, variant))
        z, r, n = masks
        self.one_mask = drop is None or drop.shape[0] == 1
        self.masks = (n, r, z) if variant.reset_gate_first else (n, z, r)

    def multiply(self, h: Tensor) -> Tensor:
        """Return h R (N,3U) of states (N,U), through the dropout masks."""
        if self.one_mask:
            return drop_rows(h, self.masks[0]) @ self.u
        parts = zip(self.masks, self.u.chunk(3, dim=1), strict=True)
        return torch.cat([drop_rows(h, m) @ part for m, part in parts], dim=1)

    def multiply_back(self, d_sums: Tensor) -> Tensor:
        """Return the gradient of the states (B,U) of one step, whose sums have the gradient `d_sums` (B,3U)."""
        if self.one_mask:
            d_h = d_sums @ self.ut
            return d_h if self.masks[0] is None else d_h * self.masks[0]
        parts = zip(self.masks, d_sums.chunk(3, dim=1), self.ut.chunk(3, dim=0), strict=True)
        return sum((d @ part * m for m, d, part in parts), start=torch.zeros_like(d_sums[:, : self.ut.shape[1]]))  # type: ignore[operator]

    def normalize(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised rows, and one over their standard deviation."""
        centred = sums - sums.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + self.variant.epsilon).rsqrt()
        return centred.mul_(rstd), rstd

    def prepare(self, h: Tensor, gx: Tensor | None) -> Norms:
        """Return the norms of rows whose states (N,U) are known; gx (N,3U) in the weights' order, if it takes part."""
        sums = self.multiply(h)
        if gx is not None:
            sums += candidate_first(gx)
        sums, rstd = self.normalize(sums)
        # A step without a valid row is not taken.
        return Norms(sums, rstd, torch.zeros_like(sums))

    def make_gates(
        self, bias: Tensor | None, bias_n: Tensor | None
    ) -> tuple[Callable[[Gates], tuple[Tensor, ...]], Callable[..., None]]:
        """Return how to turn projections into gates, as `forward.make_gates`.

        Args:
            bias: (3U,) all that is added outside of the reset product, in the weights' order; bias_n: (U,) inside it.
                Both are for "joint" alone, whose projections hold no bias.
        """
        f, g = in_place(self.variant.activation), in_place(self.variant.recurrent_activation)
        U = self.u.shape[0]
        outside = self.scale.new_zeros(3 * U) if bias is None else bias
        bias_n = self.scale.new_zeros(U) if bias_n is None else bias_n
        inside = torch.cat((bias_n, outside[: 2 * U]))
        first = outside[2 * U :]

        def compute(h: Tensor, n: Tensor, z: Tensor, r: Tensor, zr: Tensor, gh_n: Tensor, recurrent: Tensor) -> None:
            sums = self.multiply(h)
            if self.joint:
                sums[:, :U] += n
                sums[:, U:] += zr
                recurrent.copy_(inside)
                n.copy_(first)
            recurrent.addcmul_(self.normalize(sums)[0], self.scale)
            g(zr)
            f(n.addcmul_(r, gh_n))

        return lambda gates: (gates.n, gates.z, gates.r, gates.zr, gates.gh_n, gates.recurrent), compute  # type: ignore[return-value]

    def make_step(self) -> tuple[Callable, Callable[..., Tensor]]:
        """Return how to take one step back, as `backward.make_step`; fills `Norms.d_sums`."""

        def step(dh: Tensor, d_before: Tensor | None, z, blocks, d_recurrent, sums, rstd, d_sums) -> Tensor:
            blocks.mul_(dh.unsqueeze(1))
            d = d_recurrent * self.scale
            along = (d * sums).mean(-1, keepdim=True)
            torch.mul(d - d.mean(-1, keepdim=True) - sums * along, rstd, out=d_sums)
            total = self.multiply_back(d_sums).addcmul_(dh, z)
            return total if d_before is None else total.add_(d_before)

        def select(chunk) -> tuple[Tensor, ...]:
            return chunk.z, chunk.d.unflatten(-1, (4, -1)), view_gates(chunk.d, self.variant).recurrent, *chunk.norms

        return select, step


def candidate_first(value: Tensor) -> Tensor:
    """Return the last axis (.., 3U), in the weights' order, with the candidate's block first."""
    first, second, n = value.chunk(3, dim=-1)
    return torch.cat((n, first, second), dim=-1)


def candidate_last(value: Tensor) -> Tensor:
    """Return the inverse of `candidate_first`."""
    n, first, second = value.chunk(3, dim=-1)
    return torch.cat((first, second, n), dim=-1)
