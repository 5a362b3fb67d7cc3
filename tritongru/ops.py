"""The scan as `torch.library` operators, with their shapes for tracing.

`tritongru::scan` owns everything between the input and the outputs, the input projection included, so that
`recompute` can keep only the input, the states and the weights. `tritongru::scan_backward` is the reverse scan; the
gradients of the weights are one product or sum each after it. On "eager" both are `tritongru::eager_backward`, which
works in chunks that stay in a processor's cache. All are opaque to `torch.compile`.

`gradients.py` holds what autograd calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import eager, faults, gradients
from .gradients import RECOMPUTE, SAVE_GATES, SAVE_NOTHING, Setting, wants_gradients
from .inputs import Inputs
from .precision import product_precision
from .sequence import Problem
from .spec import Variant


def run_scan(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """Run `problem` on "triton" or "eager", or on "auto": triton, and eager where the kernels fail.

    Returns:
        outputs (T,B,U), at the time index of the input; last state (B,U).
    """
    p, v = problem, problem.variant
    differentiable = (p.x, p.w, p.bias_x, p.u, p.bias_h, p.h0, p.fresh, p.drop)
    # A trace is recorded once for a world with gradients and one without.
    keeps = torch.jit.is_tracing() or wants_gradients(differentiable)
    save = SAVE_NOTHING if not keeps else RECOMPUTE if p.recompute else SAVE_GATES
    out, last, _, _ = torch.ops.tritongru.scan(
        p.x, p.w, p.bias_x, p.u, p.bias_h, p.h0, p.mask, p.resets, p.fresh, p.drop,
        v.activation, v.recurrent_activation, v.reset_after, v.zero_output_for_mask, v.reverse, v.reset_gate_first,
        p.precision, save, backend,
    )  # fmt: skip
    return out, last


@torch.library.custom_op("tritongru::scan", mutates_args=())
def scan(
    x: Tensor,
    w: Tensor | None,
    bias_x: Tensor | None,
    u: Tensor,
    bias_h: Tensor | None,
    h0: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    fresh: Tensor | None,
    drop: Tensor | None,
    activation: str,
    recurrent_activation: str,
    reset_after: bool,
    zero_output_for_mask: bool,
    reverse: bool,
    reset_gate_first: bool,
    precision: str,
    save: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project the input and run the recurrence; see `sequence.Problem` for the arguments' shapes.

    Returns:
        out (T,B,U), last state (B,U), states entering each step (T,B,U) or empty, gates or empty (see
        `eager.scan_forward`); on "eager" states and gates as `eager.run_forward`.
    """
    variant = Variant(activation, recurrent_activation, reset_after, zero_output_for_mask, reverse, reset_gate_first)
    with product_precision(x, precision):
        if backend == "eager":
            inputs = Inputs(x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop)
            return eager.run_forward(inputs, variant, save == SAVE_GATES)
        gx, bias_n = project_input(x, w, bias_x, bias_h, variant)
        arguments = (gx, u, bias_n, h0, mask, resets, fresh, drop, variant, save == SAVE_GATES)
        return _run_on(backend, "scan_forward", arguments, lambda: _describe(u, variant, mask, resets, drop, precision))


@scan.register_fake
def _(
    x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, activation, recurrent_activation, reset_after,
    zero_output_for_mask, reverse, reset_gate_first, precision, save, backend,
):  # fmt: skip
    T, B = x.shape[0], x.shape[1]
    U, width = u.shape[0], 4 if reset_after else 3
    separate = mask is not None or (resets is not None and backend != "eager")
    out = x.new_empty(T, B, U)
    states = x.new_empty((T, B, U) if separate else (0,))
    shape = (T, B, width * U) if backend == "eager" else (width, T, B, U)
    gates = x.new_empty(shape if save == SAVE_GATES else (0,))
    return out, h0.new_empty(B, U), states, gates


@torch.library.custom_op("tritongru::scan_backward", mutates_args=())
def scan_backward(
    d_out: Tensor | None,
    d_last: Tensor | None,
    gates: Tensor,
    entering: Tensor,
    u: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    drop: Tensor | None,
    activation: str,
    recurrent_activation: str,
    reset_after: bool,
    zero_output_for_mask: bool,
    reverse: bool,
    reset_gate_first: bool,
    precision: str,
    fresh_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the reverse scan; arguments and results as `eager.scan_backward`."""
    variant = Variant(activation, recurrent_activation, reset_after, zero_output_for_mask, reverse, reset_gate_first)
    arguments = (d_out, d_last, gates, entering, u, mask, resets, drop, variant, fresh_gradient)
    with product_precision(u, precision):
        return _run_on(
            backend, "scan_backward", arguments, lambda: _describe(u, variant, mask, resets, drop, precision)
        )


@scan_backward.register_fake
def _(
    d_out, d_last, gates, entering, u, mask, resets, drop, activation, recurrent_activation, reset_after,
    zero_output_for_mask, reverse, reset_gate_first, precision, fresh_gradient, backend,
):  # fmt: skip
    T, B, U = entering.shape
    return (
        entering.new_empty(T, B, 3 * U),
        entering.new_empty((T, B, U) if reset_after else (0,)),
        entering.new_empty(B, U),
        entering.new_empty((T, B, U) if fresh_gradient else (0,)),
    )


def _setup_context(ctx, inputs, output):
    # Else autograd fills arrays of zeros as large as the states and the gates, whose gradients nobody asks for.
    ctx.set_materialize_grads(False)
    tensors = Inputs(*inputs[:10])
    ctx.setting = Setting(Variant(*inputs[10:16]), *inputs[16:])
    ctx.present = [t is not None for t in tensors]
    out, _, states, gates = output
    ctx.save_for_backward(*(t for t in tensors if t is not None), out, states, gates)


def _backward(ctx, d_out, d_last, _d_states, _d_gates):
    saved, setting = iter(ctx.saved_tensors), ctx.setting
    inputs = Inputs(*(next(saved) if present else None for present in ctx.present))
    found = gradients.Results(*saved)
    if setting.save == SAVE_NOTHING:
        raise RuntimeError("tritongru::scan was called without saving what its gradient needs")
    needs = Inputs(*ctx.needs_input_grad[:10])
    if torch.is_grad_enabled():
        result = gradients.differentiable_gradients(setting.variant, inputs, needs, d_out, d_last)
    elif setting.backend == "eager":
        result = gradients.eager_gradients(setting, inputs, needs, found, d_out, d_last)
    else:
        result = gradients.kernel_gradients(setting, inputs, needs, found, d_out, d_last)
    return (*result, *(None,) * 9)


torch.library.register_autograd("tritongru::scan", _backward, setup_context=_setup_context)


@torch.library.custom_op("tritongru::eager_backward", mutates_args=())
def eager_backward(
    x: Tensor,
    w: Tensor | None,
    bias_x: Tensor | None,
    u: Tensor,
    bias_h: Tensor | None,
    h0: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    fresh: Tensor | None,
    drop: Tensor | None,
    after: Tensor,
    gates: Tensor,
    d_out: Tensor | None,
    d_last: Tensor | None,
    activation: str,
    recurrent_activation: str,
    reset_after: bool,
    zero_output_for_mask: bool,
    reverse: bool,
    reset_gate_first: bool,
    precision: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `scan`'s inputs; arguments and results as `eager.run_backward`."""
    variant = Variant(activation, recurrent_activation, reset_after, zero_output_for_mask, reverse, reset_gate_first)
    with product_precision(x, precision):
        inputs = Inputs(x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop)
        return eager.run_backward(inputs, after, gates, d_out, d_last, variant, eager.Wanted(*wanted))


@eager_backward.register_fake
def _(
    x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, after, gates, d_out, d_last, activation,
    recurrent_activation, reset_after, zero_output_for_mask, reverse, reset_gate_first, precision, wanted,
):  # fmt: skip
    inputs = (x, w, bias_x, u, bias_h, h0, fresh, drop)
    return tuple(
        torch.empty_like(value) if want and value is not None else x.new_empty(0)
        for value, want in zip(inputs, wanted, strict=True)
    )


def project_input(x, w, bias_x, bias_h, variant: Variant) -> tuple[Tensor, Tensor | None]:
    """Return gx (T,B,3U) with every bias but the candidate's recurrent one, which is (U,) or None."""
    gx = x if w is None else x @ w
    bias, bias_n = bias_x, None
    if bias_h is not None:
        early = bias_h
        if variant.reset_after:
            U = bias_h.shape[0] // 3
            bias_n = bias_h[2 * U :]
            early = torch.cat((bias_h[: 2 * U], torch.zeros_like(bias_n)))
        bias = early if bias is None else bias + early
    if bias is None:
        return gx, bias_n
    return (gx + bias if w is None else gx.add_(bias)), bias_n


@torch.library.custom_op("tritongru::rebuild_gates", mutates_args=())
def rebuild_gates(
    x: Tensor,
    w: Tensor | None,
    bias_x: Tensor | None,
    u: Tensor,
    bias_h: Tensor | None,
    entering: Tensor,
    drop: Tensor | None,
    activation: str,
    recurrent_activation: str,
    reset_after: bool,
    reset_gate_first: bool,
    precision: str,
) -> Tensor:
    """Return the gates (4 or 3,T,B,U) that `scan` did not save, by one product over all steps."""
    variant = Variant(activation, recurrent_activation, reset_after, reset_gate_first=reset_gate_first)
    with product_precision(x, precision):
        rows = eager.rebuild(x.flatten(0, 1), w, bias_x, u, bias_h, entering.flatten(0, 1), drop, variant)
    return eager.unpack_gates(rows.unflatten(0, entering.shape[:2]), variant).to(x.dtype)


@rebuild_gates.register_fake
def _(
    x, w, bias_x, u, bias_h, entering, drop, activation, recurrent_activation, reset_after, reset_gate_first, precision
):
    T, B, U = entering.shape
    return entering.new_empty(4 if reset_after else 3, T, B, U)


def _run_on(backend: str, function: str, arguments: tuple, describe_call: Callable[[], faults.Call]) -> tuple:
    """Run a scan of `launch` or `eager`, which share names and results; "auto" is triton, and eager where it fails."""

    def run_eager():
        return getattr(eager, function)(*arguments)

    if backend == "eager":
        return run_eager()
    call = describe_call()

    def run_triton():
        # Imports triton, which need not be installed for the other backends.
        launch = importlib.import_module("tritongru.launch")
        return getattr(launch, function)(*arguments, call.precision)

    return run_triton() if backend == "triton" else faults.run_or_continue(call, function, run_triton, run_eager)


def _describe(
    u: Tensor, v: Variant, mask: Tensor | None, resets: Tensor | None, drop: Tensor | None, precision: str
) -> faults.Call:
    return faults.Call(
        u.device.type, u.device.index or 0, u.dtype, u.shape[0], v.activation, v.recurrent_activation, v.reset_after,
        mask is not None, resets is not None, 0 if drop is None else drop.shape[0], precision,
    )  # fmt: skip
