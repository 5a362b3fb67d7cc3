"""Allocate, choose a grid, launch the scan kernels.

Offers the two functions of `eager.continuation` with a `precision` more, on the tensor's own device. What a kernel is
given is one dict by its arguments' names; `ahead` takes it from here too, with tensors that have no data.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...call.problem import Variant
from ...tuning import choices
from ...tuning.configs import SINGLE, STEPS, Device, LaunchConfig
from ...tuning.devices import device_limits
from ...tuning.tables import Key
from ..eager.continuation import Norm
from . import launching
from .kernels.backward import gru_backward_kernel
from .kernels.forward import gru_forward_kernel
from .launching import contiguous, on_device, restart
from .norms import in_one_column, in_one_row
from .widths import Widths
from .workspace import Workspace

_forced = threading.local()


@contextlib.contextmanager
def use_config(config: LaunchConfig | Mapping[str, LaunchConfig] | None):
    """Launch with `config` inside the block, on this thread: for tuning and tests.

    Args:
        config: for both kernels, or for those it names ("forward", "backward"); None: as outside.
    """
    before = getattr(_forced, "config", None)
    _forced.config = config
    try:
        # A backward pass on a GPU would run in a thread of its own, which knows nothing of `config`.
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _forced.config = before


def is_forced() -> bool:
    """Return whether `use_config` is in force on this thread."""
    return getattr(_forced, "config", None) is not None


def choose_config(
    kernel: str, u: Tensor, batch: int, variant: Variant, precision: str, drop: Tensor | None, masked: bool,
    device: Device,
) -> LaunchConfig:  # fmt: skip
    """Return the configuration of `kernel` on `device` for recurrent weights `u (U,3U)` and `batch` rows."""
    forced = getattr(_forced, "config", None)
    if isinstance(forced, Mapping):
        forced = forced.get(kernel)
    if forced is not None:
        return forced
    key = Key.of(kernel, u.dtype, precision, u.shape[0], drop is not None, masked, not variant.reset_after)
    return choices.choose(key, batch, device, variant.layer_norm is not None).config


def scan_forward(
    gx: Tensor,
    u: Tensor,
    bias_n: Tensor | None,
    h0: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    fresh: Tensor | None,
    drop: Tensor | None,
    variant: Variant,
    save_gates: bool,
    precision: str = "ieee",
    keep: Tensor | None = None,
    norm: Norm | None = None,
    counted: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the recurrence; arguments and results as `eager.continuation.scan_forward`; counted: as of `Constants`."""
    if norm is not None and (widths := Widths.of(u.shape[0])).differ:
        widen = widths.widen
        results = scan_forward(
            widen(gx), widths.widen_weights(u), widen(bias_n), widen(h0), mask, resets, widen(fresh), widen(drop),
            variant, save_gates, precision, widen(_zoneout(keep)), widths.widen_norm(norm), widths.units,
        )  # fmt: skip
        out, last, states, gates = map(widths.narrow, results)
        return out, last, states, gates
    T, B, U = gx.shape[0], gx.shape[1], u.shape[0]
    separate = mask is not None or resets is not None
    if T == 0 or B == 0:
        gates = gx.new_empty((4 if variant.reset_after else 3, T, B, U) if save_gates else (0,))
        return gx.new_empty(T, B, U), h0.clone(), gx.new_empty((T, B, U) if separate else (0,)), gates
    device = device_limits(u.device)
    config = choose_config("forward", u, B, variant, precision, drop, separate, device)
    workspace = Workspace("forward", config, u, B, device, counted)
    given, entering = forward_arguments(
        workspace, gx, u, bias_n, h0, mask, resets, fresh, drop, variant, save_gates, keep, norm
    )
    leaving, launch = given["leaving"], workspace.launcher(gru_forward_kernel, variant, precision)
    with on_device(u.device):
        if config.schedule == STEPS:
            for step in range(T):
                given |= dict(step_begin=step, step_end=step + 1)
                if step > 0:
                    given["h_first"] = leaving[T - step if variant.reverse else step - 1]
                for phase in (0,) if variant.reset_after else (1, 2):
                    launch(given, phase)
        else:
            launch(given)
        workspace.check()
    gates = gx.new_empty(0) if given["gates"] is None else given["gates"]
    return given["out"], given["carry"].to(h0.dtype, copy=True), entering, gates


def forward_arguments(
    workspace: Workspace, gx: Tensor, u: Tensor, bias_n: Tensor | None, h0: Tensor, mask: Tensor | None,
    resets: Tensor | None, fresh: Tensor | None, drop: Tensor | None, variant: Variant, save_gates: bool,
    keep: Tensor | None = None, norm: Norm | None = None,
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    """Return what `gru_forward_kernel` is given for all steps, and where the states entering each step will be."""
    (T, B, _), U, config = gx.shape, u.shape[0], workspace.config
    fresh, mask, resets = contiguous(fresh), _as_bytes(mask), _as_bytes(resets)
    first = T - 1 if variant.reverse else 0
    start = h0
    if resets is not None:
        start = restart(h0, resets[first], fresh[first] if fresh is not None and fresh.dim() == 3 else fresh)
    start = start.contiguous()
    gates = middle = z_carry = None
    out = gx.new_empty(T, B, U)
    if mask is None and resets is None:
        leaving, entering = out, gx.new_empty(0)
    else:
        # One step more than T, so that the state entering the first step has a place beside the others.
        states = gx.new_empty(T + 1, B, U)
        states[T if variant.reverse else 0] = start
        leaving, entering = (states[:T], states[1:]) if variant.reverse else (states[1:], states[:T])
    if save_gates:
        gates = gx.new_empty(4 if variant.reset_after else 3, T, B, U)
    carry = start.to(torch.float32, copy=True)
    if not variant.reset_after and config.schedule != SINGLE:
        middle = torch.empty_like(start)
        z_carry = torch.empty_like(carry) if config.schedule == STEPS else None
    late = contiguous(bias_n) if norm is None else in_one_row(norm, bias_n, variant)
    given = dict(
        gx=gx.contiguous(), u=u, late=late, h_first=start, leaving=leaving, out=out, gates=gates,
        carry=carry, middle=middle, z_carry=z_carry, fresh=fresh, drop=contiguous(drop),
        s_fresh_t=B * U if fresh is not None and fresh.dim() == 3 else 0,
        patience=launching.PATIENCE, zoneout=_zoneout(keep), **workspace.arguments(T, B, mask, resets, variant),
    )  # fmt: skip
    return given, entering


def scan_backward(
    d_out: Tensor | None,
    d_last: Tensor | None,
    gates: Tensor,
    entering: Tensor,
    u: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    drop: Tensor | None,
    variant: Variant,
    fresh_gradient: bool,
    precision: str = "ieee",
    keep: Tensor | None = None,
    norm: Norm | None = None,
    counted: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the reverse scan; arguments and results as `eager.continuation.scan_backward`; counted: as of `Constants`."""
    if norm is not None and (widths := Widths.of(u.shape[0])).differ:
        widen = widths.widen
        results = scan_backward(
            widen(d_out), widen(d_last), widen(gates), widen(entering), widths.widen_weights(u), mask, resets,
            widen(drop), variant, fresh_gradient, precision, widen(_zoneout(keep)), widths.widen_norm(norm),
            widths.units,
        )  # fmt: skip
        d_gx, d_gh_n, d_h0, d_fresh = map(widths.narrow, results)
        return d_gx, d_gh_n, d_h0, d_fresh
    T, B, U = entering.shape
    if T == 0 or B == 0:
        d_h0 = entering.new_zeros(B, U) if d_last is None else d_last.to(entering.dtype, copy=True)
        d_gh_n = entering.new_empty((T, B, U) if variant.reset_after else (0,))
        d_gx = entering.new_empty((T, B, 3 * U) if norm is None else (2, T, B, 3 * U))
        return d_gx, d_gh_n, d_h0, entering.new_empty((T, B, U) if fresh_gradient else (0,))
    masked = mask is not None or resets is not None
    device = device_limits(u.device)
    config = choose_config("backward", u, B, variant, precision, drop, masked, device)
    workspace = Workspace("backward", config, u, B, device, counted)
    given = backward_arguments(
        workspace, d_out, d_last, gates, entering, u, mask, resets, drop, variant, fresh_gradient, keep, norm
    )
    launch = workspace.launcher(gru_backward_kernel, variant, precision)
    with on_device(u.device):
        if config.schedule == STEPS:
            for step in range(T):
                given |= dict(step_begin=step, step_end=step + 1)
                for phase in (1, 3) if variant.reset_after else (1, 2, 3):
                    launch(given, phase)
        else:
            launch(given)
        workspace.check()
    d_gh_n, d_fresh = (entering.new_empty(0) if given[n] is None else given[n] for n in ("d_gh_n", "d_fresh"))
    return given["d_gx"], d_gh_n, given["carry"].to(entering.dtype, copy=True), d_fresh


def backward_arguments(
    workspace: Workspace, d_out: Tensor | None, d_last: Tensor | None, gates: Tensor, entering: Tensor, u: Tensor,
    mask: Tensor | None, resets: Tensor | None, drop: Tensor | None, variant: Variant, fresh_gradient: bool,
    keep: Tensor | None = None, norm: Norm | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return what `gru_backward_kernel` is given for all steps."""
    T, B, U = entering.shape
    carry = torch.zeros(B, U, device=u.device) if d_last is None else d_last.to(torch.float32, copy=True).contiguous()
    return dict(
        d_out=contiguous(d_out), gates=gates.contiguous(), entering=entering.contiguous(), u=u,
        drop=contiguous(drop), d_gx=entering.new_empty((T, B, 3 * U) if norm is None else (2, T, B, 3 * U)),
        normal=None if norm is None else norm.sums, scale=None if norm is None else in_one_column(norm),
        d_gh_n=entering.new_empty(T, B, U) if variant.reset_after else None,
        d_fresh=entering.new_empty(T, B, U) if fresh_gradient else None,
        carry=carry, y_carry=None if mask is None else torch.zeros_like(carry),
        clip=variant.gradient_clip, patience=launching.PATIENCE, zoneout=_zoneout(keep),
        **workspace.arguments(T, B, _as_bytes(mask), _as_bytes(resets), variant),
    )  # fmt: skip


def _zoneout(keep: Tensor | None) -> Tensor | None:
    """Return a zoneout mask (T,B,U) as the kernels take it; of one number for all, which is expanded, one row (U,)."""
    if keep is not None and not any(keep.stride()):
        keep = keep[0, 0]
    return contiguous(keep)


def _as_bytes(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous().view(torch.uint8)
