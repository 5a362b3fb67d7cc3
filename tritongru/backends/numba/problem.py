"""One call as the kernels see it: tensors in the dtype of sums, a plan, scratch, and the parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...activations import TABLE
from ...call.problem import Inputs, Variant
from ...environment import second_cache
from ..eager.layout import compute_dtype
from .compile import Compiled, numpy_dtype
from .kernels import fields as at
from .kernels.packing import pack
from .kernels.scan import scan
from .kernels.shared import shared_scan
from .kernels.vector_type import PANEL, count_lanes
from .sharing import LEAST_READ, LEAST_STEPS, count_shares, may_share, run_sharing
from .spare import MOST_BYTES, borrow, give_back
from .threads import group_size, run_parts, share_rows

# Bytes of projected input that are kept at a time: a part of a core's second cache, of 256 KiB and more. An estimate.
CHUNK = 1 << 17
LINE = 64  # bytes of a cache line
# Bytes of weights that take a thread some thirty microseconds to pack; another thread begins within ten. Seen on an AMD
# EPYC with AVX-512.
PACKED_ALONE = 1 << 18


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def with_rows(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return `value` in `dtype`, its last axis contiguous."""
    if value is None:
        return None
    if value.dtype != dtype:
        value = value.to(dtype)
    return value if value.stride(-1) == 1 or value.shape[-1] == 1 else value.contiguous()


def in_compute_dtype(a: Inputs) -> Inputs:
    """Return the inputs in float32 or float64 as the kernels read them."""
    dtype = compute_dtype(a.x.dtype)
    w, u = a.w, a.u
    if u.dtype != dtype:
        w, u = None if w is None else w.to(dtype), u.to(dtype)
    return Inputs(
        with_rows(a.x, dtype), w, with_rows(a.bias_x, dtype), u, with_rows(a.bias_h, dtype), with_rows(a.h0, dtype),
        None if a.mask is None else a.mask.contiguous(), None if a.resets is None else a.resets.contiguous(),
        with_rows(a.fresh, dtype), with_rows(a.drop, dtype), _of_units(a.keep, dtype), with_rows(a.scale, dtype),
    )  # type: ignore[arg-type]  # fmt: skip


def _of_units(keep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a zoneout mask as `with_rows`; of one number for all, which is expanded, one row is made and no more."""
    if keep is None or keep.numel() == 0 or any(keep.stride()):
        return with_rows(keep, dtype)
    return keep[0, 0].to(dtype).contiguous().expand(keep.shape)


class Problem:
    """One scan, of so many members that run at once: its inputs (see `in_compute_dtype`) and the fields of its plan.

    Attributes:
        fields: values by the names in fields.py. kept: what their addresses point to.
    """

    def __init__(self, a: Inputs, variant: Variant, members: int = 1):
        self.a, self.variant = a, variant
        (T, B, I), U = a.x.shape, a.u.shape[0]
        self.dtype = numpy_dtype(a.x)
        self.lanes = count_lanes(self.dtype.itemsize)
        self.drops = 0 if a.drop is None else a.drop.shape[0]
        first, width = (U, 4) if variant.reset_after else (0, 3)
        z, r = (U, 0) if variant.reset_gate_first else (0, U)
        self.kept: list[Tensor] = []
        self.fields: dict[str, Any] = dict(
            STEPS=T, BATCH=B, INPUT=I, UNITS=U, REVERSE=variant.reverse, RESET_AFTER=variant.reset_after,
            ZERO_OUTPUT=variant.zero_output_for_mask, ACTIVATION=TABLE[variant.activation].kernel_id,
            RECURRENT_ACTIVATION=TABLE[variant.recurrent_activation].kernel_id,
            U_GIVEN=a.u.data_ptr(), U_ROW=a.u.stride(0), U_COLUMN=a.u.stride(1),
            X=a.x.data_ptr(), X_STEP=a.x.stride(0), X_ROW=a.x.stride(1), H0=a.h0.data_ptr(), H0_ROW=a.h0.stride(0),
            Z_AT=first + z, R_AT=first + r, N_AT=first + 2 * U, WIDTH=width * U, SIZE=group_size(B),
        )  # fmt: skip
        self._set_options()
        work = 6 * T * B * U * (U + (0 if a.w is None else I))
        self.members = members
        order, bounds = share_rows(B, None if a.mask is None else a.mask.sum(0), work, members)
        # What each part has of its own.
        self.parts = [dict(FIRST=i, ROWS=j - i) for i, j in zip(bounds, bounds[1:], strict=False)]
        if order is not None:
            self.fields["ORDER"] = self.keep(order)

    def share_units(self, steps: int) -> int:
        """Let threads share the units of a scan over so many steps; return how many, 1 if they had better not."""
        a, fields = self.a, self.fields
        extras = (a.mask, a.resets, a.drop, a.keep, a.scale)
        if self.members > 1 or any(t is not None for t in extras) or not self.variant.reset_after:
            return 1
        rows, U = fields["BATCH"], fields["UNITS"]
        weights = 3 * U * U * self.dtype.itemsize
        if rows == 0 or steps < LEAST_STEPS or (rows == 1 and steps * weights < LEAST_READ):
            return 1
        groups, panels = -(-rows // fields["SIZE"]), -(-U // (self.lanes * PANEL))
        shares = count_shares(rows, groups, panels, weights)
        if shares > 1:
            fields["SHARES"] = shares
            self.parts = [dict(FIRST=0, ROWS=rows, SHARE=share) for share in range(shares)]
        return shares

    def _set_options(self) -> None:
        """Set the fields of what a call may leave out."""
        a = self.a
        if a.bias_x is not None:
            self.fields["BIAS_X"] = a.bias_x.data_ptr()
        if a.bias_h is not None:
            self.fields["BIAS_H"] = a.bias_h.data_ptr()
        if a.mask is not None:
            self.fields["MASK"] = a.mask.data_ptr()
        if a.resets is not None:
            self.fields["RESETS"] = a.resets.data_ptr()
            if a.fresh is not None:
                step = a.fresh.stride(0) if a.fresh.dim() == 3 else 0
                self.fields |= dict(FRESH=a.fresh.data_ptr(), FRESH_STEP=step, FRESH_ROW=a.fresh.stride(-2))
        if a.keep is not None:
            self.fields |= dict(KEEP=a.keep.data_ptr(), KEEP_STEP=a.keep.stride(0), KEEP_ROW=a.keep.stride(1))
        if a.drop is not None:
            drop = a.drop[[1, 0, 2]] if self.drops == 3 and self.variant.reset_gate_first else a.drop
            self.fields |= dict(DROP=self.keep(drop.contiguous()), DROPS=self.drops)

        if a.scale is not None:
            epsilon = self.keep(a.x.new_tensor([self.variant.epsilon]))
            self.fields |= dict(SCALE=a.scale.data_ptr(), EPSILON=epsilon, JOINT=self.variant.layer_norm == "joint")

    def keep(self, value: Tensor) -> int:
        """Return the address of a tensor, which lives from now on as long as the problem."""
        self.kept.append(value)
        return value.data_ptr()

    def take_memory(self, **sizes: int) -> None:
        """Take memory of so many numbers for packed weights and what else all parts see, by the names of its fields."""
        size = round_up(sum(sizes.values()) * self.dtype.itemsize, LINE)
        is_shared = bool(self.fields.get("SHARES"))
        packers = 0 if is_shared else count_packers(size, len(self.parts))
        is_apart = not (is_shared or packers)
        self.packed_bytes = size * len(self.parts) if is_apart else size
        self.packed = borrow(self.packed_bytes)
        self.fields["PACKERS"] = packers
        for part, own in enumerate(self.parts):
            start = self.packed.data_ptr() + is_apart * part * size
            for name, numbers in sizes.items():
                own[name] = start
                start += numbers * self.dtype.itemsize

    def release(self) -> None:
        """Give the memory of the packed weights to the next call: all parts have been run."""
        give_back(self.packed)

    def make_parts(self, scratch: Callable[[int], dict[str, int]], chunk: Callable[[int], int]) -> list[np.ndarray]:
        """Return the plan of each part of the batch.

        Args:
            scratch: of the numbers of scratch by the names of their fields, chunk: of the steps projected at a time,
                for R rows.
        """
        parts, total = [], 0
        for own in self.parts:
            rows, size = own["ROWS"], self.fields["SIZE"]
            count = -(-rows // size)
            steps = chunk(count * size)
            sizes = {name: number * self.dtype.itemsize for name, number in scratch(count * size).items()}
            sizes |= dict(PLACED=8 * rows, GROUPS=8 * count, LIVE=8 * count, FLAGS=count * steps)
            fields = self.fields | own | dict(CHUNK=steps)
            for name, number in sizes.items():
                fields[name] = total
                total += round_up(number, LINE)
            parts.append((fields, sizes))
        self.scratch = torch.empty(total, dtype=torch.uint8, device="cpu")
        start = self.scratch.data_ptr()
        return [make_plan(fields | {name: start + fields[name] for name in sizes}) for fields, sizes in parts]

    def run_scan(self, begin: int, end: int) -> None:
        """Run the steps begin..end, counted in the order of processing."""
        parts = self.plan_scan(begin, end, may_share())
        pack_ahead(parts, self.dtype)
        run_plans((shared_scan if are_shared(parts) else scan).for_dtype(self.dtype), parts)

    def plan_scan(self, begin: int, end: int, by_units: bool) -> list[np.ndarray]:
        """Return the plan of each part for the steps begin..end: of the batch or, if that may be, of the units."""
        a, fields = self.a, self.fields
        I, U = fields["INPUT"], fields["UNITS"]
        # Where units are shared, states are read from the outputs, which only a scan over all steps writes.
        shares = self.share_units(end - begin) if by_units and a.w is not None and fields.get("OUT") else 1
        # Gates that are multiplied apart begin at whole panels.
        apart = self.drops == 3 or not self.variant.reset_after or shares > 1
        P = round_up(U, self.lanes * (PANEL if apart else 1))
        fields |= dict(PADDED=P, BEGIN=begin, END=end)
        sizes = dict(BIAS=3 * P, BIAS_N=P, RECURRENT=3 * P * U)
        if a.w is not None:
            fields |= dict(W_GIVEN=a.w.data_ptr(), W_ROW=a.w.stride(0), W_COLUMN=a.w.stride(1))
            sizes["W"] = 3 * P * max(I, 1)
        self.take_memory(**sizes)
        copies = max(self.drops, 0 if self.variant.reset_after else 1)

        def chunk(R: int) -> int:
            # A multiple of four, so that a row's steps are always grouped in the same way.
            return max(4, min(round_up(end - begin, 4), CHUNK // (R * 3 * P * self.dtype.itemsize) // 4 * 4))

        def scratch(R: int) -> dict[str, int]:
            return dict(
                H=R * P, ENTERING=copies * R * P, PROJECTED=chunk(R) * R * 3 * P, SUMS=R * 3 * P,
                SHOWN=0 if a.mask is None else R * P, KEPT=self.drops * R * P,
            )  # fmt: skip

        return self.make_parts(scratch, chunk)


def count_packers(size: int, parts: int) -> int:
    """Return how many threads pack so many bytes of weights ahead of a scan, 0 if each of the parts does it.

    Lines that other threads have read are slow to write, so each has its own where they fit its second cache.
    """
    if parts > 1 and size <= second_cache() and size * parts <= MOST_BYTES:
        return 0
    count = min(torch.get_num_threads(), size // PACKED_ALONE)
    return count if count > 1 else int(parts > 1)


def pack_ahead(plans: np.ndarray | Sequence[np.ndarray], dtype: np.dtype) -> None:
    """Pack the weights for all parts of a scan that do not do it themselves, each thread some of the panels."""
    count = int(plans[0][at.PACKERS]) if len(plans) else 0
    if count:
        shares = np.tile(plans[0], (count, 1))
        shares[:, at.PACKER] = range(count)
        run_parts(pack.for_dtype(dtype), shares)


def are_shared(plans: np.ndarray | Sequence[np.ndarray]) -> bool:
    """Return whether the parts of a scan are some of its units each, not some of its rows."""
    return len(plans) > 1 and bool(plans[0][at.SHARES])


def run_plans(kernel: Compiled, plans: np.ndarray | Sequence[np.ndarray]) -> None:
    """Run all parts of a scan."""
    if are_shared(plans):
        run_sharing(kernel, plans, at.MEETING, int(plans[0][at.END] - plans[0][at.BEGIN]))
    else:
        run_parts(kernel, plans)


def make_plan(fields: dict[str, Any]) -> np.ndarray:
    """Return the fields in their places, zero where there is none."""
    values = [0] * len(_PLACES)
    for name, value in fields.items():
        values[_PLACES[name]] = value
    return np.array(values, np.int64)


_PLACES = {name: place for place, name in enumerate(at.NAMES)}
