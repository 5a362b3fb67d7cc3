"""The gradients that are sums over all steps: those of the weights, the biases, the input and the dropout masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from .layout import Steps, compute_dtype, drop_rows, gate_width, split_drop, split_gates, view_gates
from .normalized import Norms, candidate_last


class Sums:
    """Gradients that grow by one product or sum per chunk; kept in the dtype of sums until `finish`."""

    def __init__(self, a: Inputs, variant: Variant, wanted: Inputs, all_steps: Steps):
        x, w, bias_x, u, bias_h, drop = a.x, a.w, a.bias_x, a.u, a.bias_h, a.drop
        self.steps, self.variant, self.x, self.w, self.u = all_steps, variant, x, w, u
        self.dtype = compute_dtype(x.dtype)
        self.drop = None if drop is None else drop.to(self.dtype)
        self.wt = None if w is None else w.to(self.dtype).t()

        def zeros(like: Tensor | None, is_wanted: bool) -> Tensor | None:
            # Laid out as the weights are, so that autograd need not copy the gradient to a parameter's layout.
            return torch.zeros_like(like, dtype=self.dtype) if like is not None and is_wanted else None

        self.d_x = torch.empty_like(x) if wanted.x else None
        self.d_w = zeros(w, wanted.w)
        self.d_bias_x = zeros(bias_x, wanted.bias_x)
        self.d_u = zeros(u, wanted.u)
        self.d_bias_h = zeros(bias_h, wanted.bias_h)
        self.d_drop = zeros(drop, wanted.drop)
        self.d_scale = zeros(a.scale, wanted.scale)
        self.rows = u.new_zeros(gate_width(variant) * u.shape[0], dtype=self.dtype)

    def add(self, d_packed: Tensor, h: Tensor, r: Tensor, begin: int, end: int, norms: Norms | None = None) -> None:
        """Add the chunk of steps begin..end: gate gradients (N,..), entering states and reset gates (N,U)."""
        d = view_gates(d_packed, self.variant)
        d_projected = d.projected
        d_gates = (d.z, d.r, d.n if d.gh_n is None else d.gh_n)
        if norms is not None:
            if self.d_scale is not None:
                self.d_scale += candidate_last((d.recurrent * norms.sums).sum(0))
            # What a norm has between the product and the gate.
            d_sums = candidate_last(norms.d_sums)
            d_gates = split_gates(d_sums, self.variant)
            d_projected = d_sums if self.variant.layer_norm == "joint" else d_projected
        if self.d_x is not None:
            rows = d_projected if self.wt is None else d_projected @ self.wt
            if self.x.dim() == 2:
                self.d_x[self.steps.rows(begin, end)] = rows
            else:
                self.d_x[begin:end] = rows.view(end - begin, *self.x.shape[1:])
        if self.d_w is not None:
            self.d_w.addmm_(self.steps.read(self.x, begin, end).to(self.dtype).t(), d_projected)
        if self.d_bias_x is not None or self.d_bias_h is not None:
            self.rows += d_packed.sum(0)
        if self.d_u is not None or self.d_drop is not None:
            d_zr = d.zr if norms is None else d_sums[:, : 2 * h.shape[-1]]
            self._add_recurrent(d_gates, d_zr, h, h if self.variant.reset_after else h * r)

    def _add_recurrent(self, d_gates: tuple[Tensor, Tensor, Tensor], d_zr: Tensor, h: Tensor, h_n: Tensor) -> None:
        """dR_g = (h * m_g)' dgh_g per gate, and the gradient of the dropout masks m_g."""
        if self.drop is None:
            assert self.d_u is not None
            U = h.shape[-1]
            self.d_u[:, : 2 * U].addmm_(h.t(), d_zr)
            self.d_u[:, 2 * U :].addmm_(h_n.t(), d_gates[2])
            return
        if self.d_u is not None:
            masks, places = split_drop(self.drop, self.variant), split_gates(self.d_u, self.variant)
            for side, m, d_gate, place in zip((h, h, h_n), masks, d_gates, places, strict=True):
                place.addmm_(drop_rows(side, m).t(), d_gate)
        if self.d_drop is not None and h.numel():
            weights, places = split_gates(self.u.to(self.dtype), self.variant), split_drop(self.d_drop, self.variant)
            for side, d_gate, u_gate, place in zip((h, h, h_n), d_gates, weights, places, strict=True):
                place += ((d_gate @ u_gate.t()) * side).view(-1, *place.shape).sum(0)

    def finish(self) -> Inputs:
        """Return the gradients in the inputs' dtype, None where not wanted; those of states are not among them."""
        rows = view_gates(self.rows, self.variant)
        if self.d_bias_x is not None:
            self.d_bias_x.copy_(rows.projected)
        if self.d_bias_h is not None:
            self.d_bias_h.copy_(torch.cat((rows.zr, rows.n if rows.gh_n is None else rows.gh_n)))

        def result(value: Tensor | None) -> Any:
            return None if value is None else value.to(self.x.dtype)

        return Inputs(
            x=result(self.d_x), w=result(self.d_w), bias_x=result(self.d_bias_x), u=result(self.d_u),
            bias_h=result(self.d_bias_h), h0=None, drop=result(self.d_drop), scale=result(self.d_scale),  # type: ignore[arg-type]
        )  # fmt: skip
