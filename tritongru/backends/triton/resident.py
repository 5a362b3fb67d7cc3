"""Allocate, choose a grid, launch the resident kernels: the functions of `scan`, and the same for several scans.

Where `tilings.reasons_against` names no reason, `run_forward` and `run_backward` take the arguments of
`scan.scan_forward` and `scan.scan_backward` and give the same results. `run_members_forward` and
`run_members_backward` run M scans of the same shape in one launch, each with weights, inputs and states of its own, and
in a direction of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...activations import TABLE
from ...call.problem import Variant
from ...tuning.devices import device_limits
from . import launching, tilings
from .kernels.resident_backward import resident_backward_kernel
from .kernels.resident_forward import resident_forward_kernel
from .kernels.resident_layout import EACH, Constants, make_constants
from .launching import contiguous, on_device, restart
from .rows import plan_rows
from .tilings import MARKED, NO_EXCHANGE, Tiling
from .waits import check_faults


def run_forward(
    gx: Tensor, u: Tensor, bias_n: Tensor | None, h0: Tensor, mask: Tensor | None, resets: Tensor | None,
    fresh: Tensor | None, drop: Tensor | None, variant: Variant, save_gates: bool, precision: str = "tf32",
    tiling: Tiling | None = None, approximate: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the recurrence; arguments and results as `scan.scan_forward`.

    Args:
        tiling: in place of the chosen one. approximate: whether gates are the hardware's own tanh, exact to 11 bits;
            None: in half precision.
    """
    one = [None if value is None else value[None] for value in (gx, u, bias_n, h0, fresh, drop)]
    found = run_members_forward(
        *one[:4], mask, resets, *one[4:], variant, [variant.reverse], save_gates, precision, tiling, approximate
    )
    return tuple(value[0] if value.dim() > 1 else value for value in found)


def run_backward(
    d_out: Tensor | None, d_last: Tensor | None, gates: Tensor, entering: Tensor, u: Tensor, mask: Tensor | None,
    resets: Tensor | None, drop: Tensor | None, variant: Variant, fresh_gradient: bool, precision: str = "tf32",
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the reverse scan; arguments and results as `scan.scan_backward`."""
    one = [None if value is None else value[None] for value in (d_out, d_last, gates, entering, u, drop)]
    found = run_members_backward(
        *one[:5], mask, resets, one[5], variant, [variant.reverse], fresh_gradient, precision, tiling
    )
    return tuple(value[0] if value.dim() > 1 else value for value in found)


def run_members_forward(
    gx: Tensor, u: Tensor, bias_n: Tensor | None, h0: Tensor, mask: Tensor | None, resets: Tensor | None,
    fresh: Tensor | None, drop: Tensor | None, variant: Variant, reverse: Sequence[bool], save_gates: bool,
    precision: str = "tf32", tiling: Tiling | None = None, approximate: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run M recurrences of the same shape at once.

    Args:
        gx, u, bias_n, h0, fresh, drop: those of `run_forward`, stacked: (M,T,B,3U), (M,U,3U), .. mask, resets: (M,T,B),
            or (T,B), the same for all. reverse: of each member, in place of `variant`'s.

    Returns:
        out (M,T,B,U), last (M,B,U), entering (M,T,B,U) or empty, gates (M,4 or 3,T,B,U) or empty.
    """
    M, T, B, _ = gx.shape
    U = u.shape[1]
    separate = mask is not None or resets is not None
    gates = gx.new_empty((M, 4 if variant.reset_after else 3, T, B, U) if save_gates else (0,))
    if T == 0 or B == 0:
        nothing = gx.new_empty(M, T, B, U)
        return nothing, h0.clone(), torch.empty_like(nothing) if separate else gx.new_empty(0), gates
    gx, bias_n, fresh, drop = gx.contiguous(), contiguous(bias_n), contiguous(fresh), contiguous(drop)
    steps = _Steps(mask, resets, reverse)
    resets = steps.resets

    start = h0
    if resets is not None:
        firsts = [T - 1 if backwards else 0 for backwards in reverse]
        replaced = torch.stack([resets[m, first] for m, first in enumerate(firsts)])
        given = fresh
        if fresh is not None and fresh.dim() == 4:
            given = torch.stack([fresh[m, first] for m, first in enumerate(firsts)])
        start = restart(h0, replaced, given)
    start = start.contiguous()
    carry = start.to(torch.float32, copy=True)

    scan = _Scan("forward", u, B, tiling, steps, drop, reverse)
    if approximate is None:
        approximate = gx.element_size() == 2
    constants = scan.constants(
        variant, precision, APPROXIMATE=approximate, HAS_FRESH=fresh is not None, HAS_BIAS=bias_n is not None,
        SAVE_GATES=save_gates, SEPARATE=separate,
    )  # fmt: skip
    is_direct = constants.value("DIRECT")
    out = _new(gx, is_direct and not separate, M, T, B, U)
    states = None
    if separate:
        states = _new(gx, is_direct, M, T + 1, B, U)
        for m, backwards in enumerate(reverse):
            states[m, T if backwards else 0] = start[m]
    given = words = passed = None
    if scan.tiling.exchange == MARKED:
        part = constants.value("VALUES"), B, constants.value("WIDTH")
        given = make_marked(gx, M, *part)
        words = None if is_direct else make_marked(gx, M, T, *part)
        passed = None if variant.reset_after else make_marked(gx, M, T, *part[1:])
    s_fresh_t = B * U if fresh is not None and fresh.dim() == 4 else 0
    with on_device(gx.device):
        for tile, grid in scan.waves():
            resident_forward_kernel[grid](
                gx, scan.u, bias_n, states, out, gates if save_gates else None, carry, given, words, passed, steps.mask,
                steps.resets, fresh, drop, scan.rows, scan.stops, scan.faults, scan.directions, T, B, tile,
                launching.PATIENCE, s_fresh_t, C=constants, **scan.options(),
            )  # fmt: skip
        check_faults(scan.faults)
    entering = gx.new_empty(0) if states is None else _entering(states, reverse)
    return out, carry.to(h0.dtype, copy=True), entering, gates


def run_members_backward(
    d_out: Tensor | None, d_last: Tensor | None, gates: Tensor, entering: Tensor, u: Tensor, mask: Tensor | None,
    resets: Tensor | None, drop: Tensor | None, variant: Variant, reverse: Sequence[bool], fresh_gradient: bool,
    precision: str = "tf32", tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run M reverse scans of the same shape at once; tensors of `run_backward`, stacked, as in `run_members_forward`.

    Returns:
        d_gx (M,T,B,3U), d_gh_n (M,T,B,U) or empty, d_h0 (M,B,U), d_fresh (M,T,B,U) or empty.
    """
    M, T, B, U = entering.shape
    d_fresh = entering.new_empty((M, T, B, U) if fresh_gradient else (0,))
    if d_last is None:
        carry = torch.zeros(M, B, U, device=u.device)
    else:
        carry = d_last.to(torch.float32, copy=True).contiguous()
    if T == 0 or B == 0:
        none = entering.new_empty(entering.shape if variant.reset_after else (0,))
        return entering.new_empty(M, T, B, 3 * U), none, carry.to(entering.dtype, copy=True), d_fresh
    d_out, drop = contiguous(d_out), contiguous(drop)
    gates, entering = gates.contiguous(), entering.contiguous()
    steps = _Steps(mask, resets, reverse)
    y_carry = None if mask is None else torch.zeros_like(carry)

    scan = _Scan("backward", u, B, tiling, steps, drop, reverse)
    constants = scan.constants(variant, precision, HAS_OUT=d_out is not None, FRESH_GRADIENT=fresh_gradient)
    is_direct = constants.value("DIRECT")
    d_gx = _new(entering, is_direct, M, T, B, 3 * U)
    d_gh_n = _new(entering, is_direct, M, T, B, U) if variant.reset_after else entering.new_empty(0)
    words = None
    if scan.tiling.exchange == MARKED and not is_direct:
        words = make_marked(entering, M, T, 3, B, constants.value("WIDTH"))
    with on_device(u.device):
        for tile, grid in scan.waves():
            resident_backward_kernel[grid](
                d_out, gates, entering, scan.u, steps.mask, steps.resets, drop, d_gx,
                d_gh_n if variant.reset_after else None, d_fresh if fresh_gradient else None, carry, y_carry, words,
                scan.rows, scan.stops, scan.faults, scan.directions, T, B, tile, launching.PATIENCE, C=constants,
                **scan.options(),
            )  # fmt: skip
        check_faults(scan.faults)
    return d_gx, d_gh_n, carry.to(entering.dtype, copy=True), d_fresh


def make_marked(like: Tensor, *shape: int) -> Tensor:
    """Return memory full of marks, of the type of `like`: nothing that a kernel publishes is one."""
    signed = {2: torch.int16, 4: torch.int32}[like.element_size()]
    # All bits, which is `resident_waits.MARK`.
    return torch.full(shape, -1, dtype=signed, device=like.device).view(like.dtype)


def _new(like: Tensor, is_handed: bool, *shape: int) -> Tensor:
    """Return memory for results, full of marks where programs ask each other for them."""
    return make_marked(like, *shape) if is_handed else like.new_empty(shape)


def _entering(states: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return the states entering each step, (M,T,B,U), of all states (M,T+1,B,U): a view unless directions differ."""
    if len(set(map(bool, reverse))) == 1:
        return states[:, 1:] if reverse[0] else states[:, :-1]
    return torch.stack([one[1:] if backwards else one[:-1] for one, backwards in zip(states, reverse, strict=True)])


class _Steps:
    """Which steps are valid or begin anew, of all members.

    Attributes:
        mask, resets: (M,T,B) uint8 or None. end_alike: whether a row ends at the same step in every member.
    """

    def __init__(self, mask: Tensor | None, resets: Tensor | None, reverse: Sequence[bool]):
        given = [value for value in (mask, resets) if value is not None]
        self.end_alike = len(set(map(bool, reverse))) == 1 and all(value.dim() == 2 for value in given)
        self.mask, self.resets = _as_bytes(mask, len(reverse)), _as_bytes(resets, len(reverse))


class _Scan:
    """A launch: its tiling and grid, and what its programs share.

    Attributes:
        u: the weights in one of the two layouts the kernels read. rows, stops: see `rows.plan_rows`.
        faults: see kernels/resident_exchange.py. directions: (M,) where members differ in it. drops: masks of recurrent
            dropout.
    """

    def __init__(
        self, kernel: str, u: Tensor, batch: int, tiling: Tiling | None, steps: _Steps, drop: Tensor | None,
        reverse: Sequence[bool],
    ):  # fmt: skip
        self.kernel, self.batch, self.members, self.reverse = kernel, batch, u.shape[0], tuple(map(bool, reverse))
        self.steps, self.drop = steps, drop
        units, size = u.shape[1], u.element_size()
        self.device, self.drops = device_limits(u.device), 0 if drop is None else drop.shape[1]
        asked = self.device, self.drops, self.members
        chosen = tiling or tilings.choose(kernel, units, size, batch, *asked)
        if chosen is None:
            raise ValueError(f"no tiling of the {kernel} kernel serves units={units}, see `tilings.reasons_against`")
        self.tiling = chosen
        if reasons := tilings.reasons_against_tiling(chosen, kernel, units, size, *asked):
            raise ValueError(f"`tiling` {chosen} does not serve units={units}: {'; '.join(reasons)}")
        self.keys_first = u.stride(2) == 1 and u.stride(1) == 3 * units
        if not self.keys_first and not (u.stride(1) == 1 and u.stride(2) == units):
            u, self.keys_first = u.contiguous(), True
        if self.members > 1 and u.stride(0) != 3 * units * units:
            u = u.contiguous() if self.keys_first else u.transpose(1, 2).contiguous().transpose(1, 2)
        self.u = u
        tiles = -(-batch // chosen.block_b)
        self.grid = chosen.programs(units), tiles, self.members
        self.rows, self.stops = self._plan_rows()
        self.faults = self.directions = None
        if len(set(self.reverse)) > 1:
            # Not from a list, whose copy to the device no graph can capture, and the host would wait for it.
            self.directions = torch.zeros(self.members, dtype=torch.uint8, device=u.device)
            for member, backwards in enumerate(self.reverse):
                if backwards:
                    self.directions[member].fill_(1)
        if chosen.exchange != NO_EXCHANGE:
            self.faults = torch.zeros(self.members, tiles, dtype=torch.int32, device=u.device)

    def _plan_rows(self) -> tuple[Tensor | None, Tensor | None]:
        mask, resets = self.steps.mask, self.steps.resets
        if mask is not None and not self.steps.end_alike:
            # Rows end at a step for each member: none ends early.
            _, T, B = mask.shape
            return None, torch.full((B,), T, dtype=torch.int32, device=mask.device)
        of_all = [None if value is None else value[0] for value in (mask, resets)]
        programs = self.grid[0] * self.members
        return plan_rows(*of_all, self.reverse[0], (programs, self.grid[1]), self.device.processors)

    def constants(self, variant: Variant, precision: str, **asked) -> Constants:
        """Return what the kernel is compiled for."""
        return make_constants(
            self.kernel, self.tiling, self.u.shape[1], self.u.element_size(), precision, KEYS_FIRST=self.keys_first,
            ACT=TABLE[variant.activation].kernel_id, REC_ACT=TABLE[variant.recurrent_activation].kernel_id,
            RESET_AFTER=variant.reset_after, ZERO_MASKED=variant.zero_output_for_mask,
            REVERSE=self.reverse[0] if self.directions is None else EACH,
            GATE_Z=int(variant.reset_gate_first), GATE_R=1 - int(variant.reset_gate_first),
            DROPS=self.drops, HAS_MASK=self.steps.mask is not None,
            HAS_RESET=self.steps.resets is not None, HAS_ROWS=self.rows is not None, MEMBERS=self.members > 1, **asked,
        )  # fmt: skip

    def waves(self) -> Iterator[tuple[int | None, tuple[int, ...]]]:
        """Yield the first tile and the grid of each launch."""
        programs, tiles, members = self.grid
        waits = self.tiling.exchange != NO_EXCHANGE
        return launching.waves(self.grid, self.device.processors // (programs * members) if waits else tiles)

    def options(self) -> dict:
        """Return the launch options; a cooperative launch fails where its grid cannot be resident at once."""
        return dict(
            num_warps=self.tiling.num_warps,
            maxnreg=self.tiling.max_registers(),
            launch_cooperative_grid=self.tiling.exchange != NO_EXCHANGE,
        )


def _as_bytes(value: Tensor | None, members: int) -> Tensor | None:
    """Return (M,T,B) uint8 of (T,B), the same for all members, or of (M,T,B)."""
    if value is None:
        return None
    return value.expand(members, *value.shape[-2:]).contiguous().view(torch.uint8)
