"""`run_forward`: the plan of a scan and its scratch, and the call."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...activations import TABLE
from ...eager.layout import compute_dtype, gate_width
from ...inputs import Inputs
from ...spec import Variant
from . import fields as at
from .packing import gate_columns, numpy_dtype, pack_biases, pack_gates
from .scan import scan
from .threads import group_size, run_parts, share_rows
from .vectors import PANEL, count_lanes

# Bytes of projected input that are kept at a time: a part of every current core's second cache.
CHUNK = 1 << 17


def run_forward(a: Inputs, variant: Variant, save_gates: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project the input and run the recurrence over all steps; see `eager.run_forward`, whose results these are.

    Returns:
        out (T,B,U) at the input's time index; last state (B,U); states leaving each step (T,B,U), empty without a mask,
        where they are `out`; packed gates (T,B,4U or 3U) as `eager.layout` says, zero in masked steps, empty unless
        `save_gates`.

    Note:
        The same call gives the same bits, with any number of threads: those of a row follow from its own values, the
        weights, the size of the batch and its place in it (with a mask, by falling length).
    """
    T, B, U = a.x.shape[0], a.x.shape[1], a.u.shape[0]
    given = a.x.dtype
    a = in_compute_dtype(a)
    empty = a.x.new_empty(0)
    out, last = a.x.new_empty(T, B, U), a.x.new_empty(B, U)
    states = a.x.new_empty(T, B, U) if a.mask is not None else empty
    gates = a.x.new_empty(T, B, gate_width(variant) * U) if save_gates else empty
    problem = Problem(a, variant)
    problem.set(OUT=out, STATES=states, LAST=last, GATES=gates)
    problem.run_scan(0, T)
    if given == a.x.dtype:
        return out, last, states, gates
    return out.to(given), last.to(given), states.to(given), gates.to(given)


def in_compute_dtype(a: Inputs) -> Inputs:
    """Return the inputs in float32 or float64, each with a contiguous last axis."""
    dtype = compute_dtype(a.x.dtype)

    def ready(value: Tensor | None, is_matrix: bool = False) -> Tensor | None:
        if value is None:
            return None
        value = value.detach().to(dtype)
        return value if is_matrix or value.stride(-1) == 1 or value.shape[-1] == 1 else value.contiguous()

    return Inputs(
        ready(a.x), ready(a.w, True), ready(a.bias_x), ready(a.u, True), ready(a.bias_h), ready(a.h0),
        a.mask if a.mask is None else a.mask.contiguous(), a.resets if a.resets is None else a.resets.contiguous(),
        ready(a.fresh), ready(a.drop),
    )  # fmt: skip


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


class Problem:
    """One scan: its inputs, its plan, and what both need to live as long."""

    def __init__(self, a: Inputs, variant: Variant):
        self.a, self.variant = a, variant
        T, B, U = a.x.shape[0], a.x.shape[1], a.u.shape[0]
        I = a.x.shape[2]
        self.dtype = numpy_dtype(a.x.dtype)
        self.lanes = count_lanes(self.dtype.itemsize)
        self.drops = 0 if a.drop is None else a.drop.shape[0]
        # Gates that are multiplied apart begin at whole panels.
        apart = self.drops == 3 or not variant.reset_after
        self.padded = P = round_up(U, self.lanes * (PANEL if apart else 1))
        self.plan = np.zeros(at.COUNT, np.int64)
        self.kept: list[Tensor] = []
        first, width = (U, 4) if variant.reset_after else (0, 3)
        z, r, n = gate_columns(variant, U)
        drop = a.drop
        if drop is not None:
            drop = (drop[[1, 0, 2]] if self.drops == 3 and variant.reset_gate_first else drop).contiguous()
        self.set(
            STEPS=T, BATCH=B, INPUT=I, UNITS=U, PADDED=P, REVERSE=variant.reverse, RESET_AFTER=variant.reset_after,
            ZERO_OUTPUT=variant.zero_output_for_mask, ACTIVATION=TABLE[variant.activation].kernel_id,
            RECURRENT_ACTIVATION=TABLE[variant.recurrent_activation].kernel_id,
            X=a.x, X_STEP=a.x.stride(0), X_ROW=a.x.stride(1), H0=a.h0, H0_ROW=a.h0.stride(0), MASK=a.mask,
            RESETS=a.resets, FRESH=a.fresh, DROP=drop, DROPS=self.drops,
            Z_AT=first + z, R_AT=first + r, N_AT=first + n, WIDTH=width * U,
        )  # fmt: skip
        if a.fresh is not None:
            by_step = a.fresh.dim() == 3
            self.set(FRESH_STEP=a.fresh.stride(0) if by_step else 0, FRESH_ROW=a.fresh.stride(-2))
        lengths = None if a.mask is None else a.mask.sum(0)
        self.rows = share_rows(B, lengths, 6 * T * B * U * (U + (0 if a.w is None else I))) if B else []

    def set(self, **values) -> None:
        """Set fields of the plan: numbers, or the addresses of tensors, which are kept."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                self.kept.append(value)
                value = value.data_ptr()
            self.plan[getattr(at, name)] = 0 if value is None else value

    def run_scan(self, begin: int, end: int) -> None:
        """Run the steps begin..end, counted in the order of processing."""
        a, U, P = self.a, self.a.u.shape[0], self.padded
        bias, bias_n = pack_biases(a.bias_x, a.bias_h, self.variant, U, P, a.u)
        self.set(BEGIN=begin, END=end, BIAS=bias, BIAS_N=bias_n, RECURRENT=pack_gates(a.u, self.variant, P))
        if a.w is not None:
            self.set(W=pack_gates(a.w, self.variant, P))
        run_parts(scan.for_dtype(self.dtype), [self.make_part(rows, end - begin) for rows in self.rows])

    def make_part(self, order: Tensor, steps: int) -> np.ndarray:
        """Return the plan of the rows `order`, with scratch of its own."""
        plan, R = self.place_rows(order)
        P = self.padded
        # A multiple of four, so that a row's steps are always grouped in the same way.
        chunk = max(4, min(round_up(steps, 4), CHUNK // (R * 3 * P * self.dtype.itemsize) // 4 * 4))
        copies = max(self.drops, 0 if self.variant.reset_after else 1)
        masked = self.a.mask is not None
        plan[at.CHUNK] = chunk
        if masked:
            flags = torch.empty(chunk * R // int(plan[at.SIZE]), dtype=torch.uint8)
            self.kept.append(flags)
            plan[at.FLAGS] = flags.data_ptr()
        self.lay_out(
            plan, H=R * P, ENTERING=copies * R * P, PROJECTED=chunk * R * 3 * P, SUMS=R * 3 * P, SHOWN=masked * R * P,
            KEPT=self.drops * R * P,
        )  # fmt: skip
        return plan

    def place_rows(self, order: Tensor) -> tuple[np.ndarray, int]:
        """Return the plan of the rows `order` and its groups, and how many rows the groups have."""
        plan, size, rows = self.plan.copy(), group_size(self.a.x.shape[1]), order.shape[0]
        R = round_up(rows, size)
        numbers = torch.cat((order, torch.arange(0, R, size), order.new_empty(R // size)))
        self.kept.append(numbers)
        start = numbers.data_ptr()
        plan[at.ROWS], plan[at.SIZE] = rows, size
        plan[at.ORDER], plan[at.GROUPS] = start, start + 8 * rows
        plan[at.LIVE] = start + 8 * (rows + R // size)
        return plan, R

    def lay_out(self, plan: np.ndarray, **sizes: int) -> None:
        """Give the plan scratch of so many numbers each."""
        starts, total = {}, 0
        for name, size in sizes.items():
            starts[name], total = total, total + round_up(size, 16)
        scratch = self.a.x.new_empty(total)
        self.kept.append(scratch)
        for name, start in starts.items():
            plan[getattr(at, name)] = scratch.data_ptr() + start * self.dtype.itemsize
