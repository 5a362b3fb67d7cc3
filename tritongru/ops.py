"""The scan as two `torch.library` operators, with their shapes for tracing and their gradients.

`tritongru::scan` owns everything between the input and the outputs, the input projection included, so that
`recompute` can keep only the input, the states and the weights. `tritongru::scan_backward` is the reverse scan; the
gradients of the weights are one product or sum each after it. On "eager" both are `tritongru::eager_backward`, which
works in chunks that stay in a processor's cache. All are opaque to `torch.compile`.

A derivative of a derivative runs on the reference: when autograd asks for a graph of the backward pass, the gradients
come from `gru_reference`, which can be differentiated any number of times.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import eager, faults
from .reference import gru_reference
from .sequence import Problem
from .spec import Variant

SAVE_NOTHING, SAVE_GATES, RECOMPUTE = "nothing", "gates", "recompute"


def run_scan(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """Run `problem` on "triton" or "eager", or on "auto": triton, and eager where the kernels fail.

    Returns:
        outputs (T,B,U), at the time index of the input; last state (B,U).
    """
    p, v = problem, problem.variant
    differentiable = (p.x, p.w, p.bias_x, p.u, p.bias_h, p.h0, p.fresh, p.drop)
    save = SAVE_NOTHING if not wants_gradients(differentiable) else RECOMPUTE if p.recompute else SAVE_GATES
    out, last, _, _ = torch.ops.tritongru.scan(
        p.x, p.w, p.bias_x, p.u, p.bias_h, p.h0, p.mask, p.resets, p.fresh, p.drop,
        v.activation, v.recurrent_activation, v.reset_after, v.zero_output_for_mask, v.reverse, v.reset_gate_first,
        p.precision, save, backend,
    )  # fmt: skip
    return out, last


def wants_gradients(values: Iterable[Any]) -> bool:
    """Return whether autograd will ask for the gradient of one of `values`, of which only tensors can have one."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


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
            return eager.run_forward(
                x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, variant, save == SAVE_GATES
            )
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


class _Inputs(NamedTuple):
    """The tensor inputs of `scan`, in its order."""

    x: Tensor
    w: Tensor | None
    bias_x: Tensor | None
    u: Tensor
    bias_h: Tensor | None
    h0: Tensor
    mask: Tensor | None
    resets: Tensor | None
    fresh: Tensor | None
    drop: Tensor | None


def _setup_context(ctx, inputs, output):
    tensors = _Inputs(*inputs[:10])
    ctx.variant = Variant(*inputs[10:16])
    ctx.precision, ctx.save, ctx.backend = inputs[16:]
    ctx.present = [t is not None for t in tensors]
    out, _, states, gates = output
    ctx.save_for_backward(*(t for t in tensors if t is not None), out, states, gates)


def _backward(ctx, d_out, d_last, _d_states, _d_gates):
    saved = iter(ctx.saved_tensors)
    inputs = _Inputs(*(next(saved) if present else None for present in ctx.present))
    out, states, gates = saved
    if ctx.save == SAVE_NOTHING:
        raise RuntimeError("tritongru::scan was called without saving what its gradient needs")
    needs = _Inputs(*ctx.needs_input_grad[:10])
    if torch.is_grad_enabled():
        gradients = _differentiable_gradients(ctx, inputs, needs, d_out, d_last)
    elif ctx.backend == "eager":
        gradients = _eager_gradients(ctx, inputs, needs, out, states, gates, d_out, d_last)
    else:
        gradients = _gradients(ctx, inputs, needs, out, states, gates, d_out, d_last)
    return (*gradients, *(None,) * 9)


torch.library.register_autograd("tritongru::scan", _backward, setup_context=_setup_context)


def _eager_gradients(ctx, a: _Inputs, needs: _Inputs, out, states, gates, d_out, d_last) -> _Inputs:
    """The gradients of `scan` on "eager"."""
    v: Variant = ctx.variant
    wanted = [bool(need) for need in (*needs[:6], needs.fresh, needs.drop)]
    d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0, d_fresh, d_drop = (
        gradient if want else None
        for gradient, want in zip(
            torch.ops.tritongru.eager_backward(
                *a, out if a.mask is None else states, gates, d_out, d_last,
                v.activation, v.recurrent_activation, v.reset_after, v.zero_output_for_mask, v.reverse,
                v.reset_gate_first, ctx.precision, wanted,
            ),
            wanted,
            strict=True,
        )
    )  # fmt: skip
    return _Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0, None, None, d_fresh, d_drop)


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
        return eager.run_backward(
            x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, after, gates, d_out, d_last, variant,
            eager.Wanted(*wanted),
        )  # fmt: skip


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


def _gradients(ctx, a: _Inputs, needs: _Inputs, out, states, gates, d_out, d_last) -> _Inputs:
    """The gradients of `scan`: the reverse scan, then one product or sum for each input."""
    v: Variant = ctx.variant
    U = a.u.shape[0]
    # Saved, or the outputs moved by one step.
    entering = states if states.dim() == 3 else eager.entering_states(out, 0, out.shape[0], a.h0, None, None, v)
    if ctx.save == RECOMPUTE:
        gates = torch.ops.tritongru.rebuild_gates(
            a.x, a.w, a.bias_x, a.u, a.bias_h, entering, a.drop,
            v.activation, v.recurrent_activation, v.reset_after, v.reset_gate_first, ctx.precision,
        )  # fmt: skip
    fresh_gradient = a.fresh is not None and needs.fresh
    d_gx, d_gh_n, d_h0, d_fresh = torch.ops.tritongru.scan_backward(
        d_out, d_last, gates, entering, a.u, a.mask, a.resets, a.drop,
        v.activation, v.recurrent_activation, v.reset_after, v.zero_output_for_mask, v.reverse, v.reset_gate_first,
        ctx.precision, fresh_gradient, ctx.backend,
    )  # fmt: skip

    d_x = d_w = d_bias_x = d_u = d_bias_h = d_drop = None
    with product_precision(a.x, ctx.precision):
        if needs.x:
            d_x = d_gx if a.w is None else d_gx @ a.w.t()
        if a.w is not None and needs.w:
            d_w = _product_like(a.x.flatten(0, 1), d_gx.flatten(0, 1), a.w)
        if a.bias_x is not None and needs.bias_x:
            d_bias_x = d_gx.sum((0, 1))
        if needs.u or (a.drop is not None and needs.drop):
            d_u, d_drop = _recurrent_gradients(a, needs, entering, gates, d_gx, d_gh_n, v)
        if a.bias_h is not None and needs.bias_h:
            d_n = d_gh_n if v.reset_after else d_gx[..., 2 * U :]
            d_bias_h = torch.cat((d_gx[..., : 2 * U].sum((0, 1)), d_n.sum((0, 1))))
    if fresh_gradient and a.fresh.dim() == 2:
        d_fresh = d_fresh.sum(0)
    return _Inputs(
        d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0 if needs.h0 else None, None, None,
        d_fresh if fresh_gradient else None, d_drop,
    )  # fmt: skip


def _recurrent_gradients(a: _Inputs, needs: _Inputs, entering, gates, d_gx, d_gh_n, v: Variant):
    """dR_g = (h * m_g)' dgh_g per gate, and the gradient of the dropout masks m_g, (G,B,U)."""
    U = a.u.shape[0]
    at_n = d_gh_n if v.reset_after else d_gx[..., 2 * U :]
    h_n = entering if v.reset_after else entering * gates[1]
    if a.drop is None:
        flat = entering.flatten(0, 1)
        zr = _product_like(flat, d_gx[..., : 2 * U].flatten(0, 1), a.u)
        return torch.cat((zr, _product_like(h_n.flatten(0, 1), at_n.flatten(0, 1), a.u)), dim=1), None
    masks = a.drop.expand(3, *a.drop.shape[1:])
    columns, d_masks = [], []
    sides = (entering, entering, h_n)
    for gate, (h, m) in enumerate(zip(sides, masks, strict=True)):
        d_gate = at_n if gate == 2 else d_gx[..., gate * U : (gate + 1) * U]
        columns.append(_product_like((h * m).flatten(0, 1), d_gate.flatten(0, 1), a.u))
        if needs.drop:
            d_masks.append((h * (d_gate @ a.u[:, gate * U : (gate + 1) * U].t())).sum(0))
    d_u = torch.cat(columns, dim=1) if needs.u else None
    if not needs.drop:
        return d_u, None
    d_drop = torch.stack(d_masks)
    return d_u, (d_drop if a.drop.shape[0] == 3 else d_drop.sum(0, keepdim=True))


def _product_like(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """left' right (K,N), laid out as `weight` is, so that autograd need not copy it to a parameter's layout."""
    if weight.stride(0) == 1 and weight.stride(1) != 1:
        return (right.t() @ left).t()
    return left.t() @ right


def _differentiable_gradients(ctx, a: _Inputs, needs: _Inputs, d_out, d_last) -> list:
    """The same gradients from the reference, as a graph that autograd can differentiate again."""
    # Aliases cut the inputs from each other: an input computed from another one must not be counted twice.
    alias = _Inputs(*(t if t is None else t.view_as(t) for t in a))
    outputs, last = reference_scan(alias, ctx.variant)
    wanted = [i for i, need in enumerate(needs) if need]
    pairs = [(o, d) for o, d in ((outputs, d_out), (last, d_last)) if d is not None]
    gradients = torch.autograd.grad(
        [o for o, _ in pairs], [alias[i] for i in wanted], [d for _, d in pairs], create_graph=True, allow_unused=True
    )
    result: list = [None] * len(a)
    for i, gradient in zip(wanted, gradients, strict=True):
        result[i] = gradient
    return result


def reference_scan(a: _Inputs, v: Variant) -> tuple[Tensor, Tensor]:
    """`scan` as the reference computes it: outputs (T,B,U) at the input's time index, last state (B,U)."""
    U = a.u.shape[0]
    w = torch.eye(3 * U, dtype=a.x.dtype, device=a.x.device) if a.w is None else a.w
    zero = a.x.new_zeros(3 * U)
    pair = (zero if a.bias_x is None else a.bias_x, zero if a.bias_h is None else a.bias_h)
    drop = a.drop
    if v.reset_gate_first:
        if drop is not None and drop.shape[0] == 3:
            drop = torch.stack((drop[1], drop[0], drop[2]))
        w, u, bias, layout = w.t(), a.u.t(), pair, "torch"
    else:
        w, u, layout = w, a.u, "keras"
        bias = torch.stack(pair) if v.reset_after else pair[0] + pair[1]
    outputs, last = gru_reference(
        a.x, w, u, bias, a.h0, activation=v.activation, recurrent_activation=v.recurrent_activation,
        reset_after=v.reset_after, mask=a.mask, resets=a.resets, reset_state=a.fresh,
        recurrent_dropout=None if drop is None else tuple(drop), zero_output_for_mask=v.zero_output_for_mask,
        go_backwards=v.reverse, time_major=True, layout=layout,
    )  # fmt: skip
    return (outputs.flip(0) if v.reverse else outputs), last


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
        packed = eager.rebuild(x, w, bias_x, u, bias_h, entering, drop, variant)
    return eager.unpack_gates(packed, variant).to(x.dtype)


@rebuild_gates.register_fake
def _(
    x, w, bias_x, u, bias_h, entering, drop, activation, recurrent_activation, reset_after, reset_gate_first, precision
):
    T, B, U = entering.shape
    return entering.new_empty(4 if reset_after else 3, T, B, U)


@contextlib.contextmanager
def product_precision(x: Tensor, precision: str):
    """Hold the vendor library's float32 products to `precision` on a GPU for the length of the block."""
    if x.device.type != "cuda" or x.dtype != torch.float32:
        yield
        return
    # cuBLAS and cuDNN, whose recurrent layers have a switch of their own.
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


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
