"""`tritongru.gru` and `tritongru.scan`: the GRU as a function. Checks, decides, runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import activations, dispatch, flops, repeats
from .backends.aten import run_aten
from .backends.gradients import Setting
from .backends.members import are_alike
from .backends.running import run_members, run_scan, setting_of
from .call.arguments import Arguments, LayerNorm, changed
from .call.check import Call, Signature, check, in_autocast_dtype
from .call.heads import has_heads, split_heads
from .call.problem import Problem, canonicalize, clear_padding
from .dispatch import Decision
from .reference import gru_reference


def gru(
    x: Tensor,
    kernel: Tensor,
    recurrent_kernel: Tensor,
    bias=None,
    initial_state: Tensor | None = None,
    *,
    activation="tanh",
    recurrent_activation="sigmoid",
    reset_after: bool = True,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | str | None = None,
    input_dropout=None,
    recurrent_dropout=None,
    zero_output_for_mask: bool = False,
    go_backwards: bool = False,
    time_major: bool = False,
    layout: str = "keras",
    precision: str = "auto",
    recompute: bool = False,
    zoneout: Tensor | None = None,
    gradient_clip: float | None = None,
    layer_norm: LayerNorm | str | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The Gated Recurrent Unit over a sequence.

    h_t = z_t * h + (1 - z_t) * n_t, with z, r = g(x W + b + h R + c) and n = f(x W_h + b_h + r * (h R_h + c_h)), or
    n = f(x W_h + b_h + (r * h) R_h) where `reset_after` is False.

    Args:
        x: (B,T,I) floating point; (T,B,I) if `time_major`, and then every argument with a time axis has it first.
        kernel: (I,3U), gates z, r, h; (3U,I), gates r, z, n in layout="torch".
        recurrent_kernel: (U,3U); (3U,U) in layout="torch". Or N heads, (N,U/N,3U/N); (N,3U/N,U/N): block-diagonal
            weights, equal to N separate GRUs. All else is for whole units: kernel columns z of all heads, then r, h.
        bias: (2,3U) input and recurrent bias, (3U,) if not `reset_after`, the pair (b_ih, b_hh) in layout="torch";
            None without.
        initial_state: (B,U), (1,U) or (U,); None for zeros.
        activation, recurrent_activation: names, callables, or None for linear.
        mask: (B,T), nonzero where a step is valid. A masked step keeps the state and repeats the output (zeros before
            the first valid step).
        lengths: (B,) integers in 0..T, short for the mask `t < length`. Values on an accelerator are not read back.
        resets: (B,T), nonzero where the state is replaced before the step is processed; no gradient crosses.
        reset_state: what replaces it: None (zeros), "initial", (B,U) or (B,T,U).
        input_dropout: a scaled mask broadcastable to (B,T,I), or three (z, r, h).
        recurrent_dropout: a scaled mask (B,U), or three (z, r, h).
        zero_output_for_mask: masked steps give zeros in place of the previous output.
        go_backwards: process from the last step to the first; outputs are in the order of processing.
        precision: float32 products: "auto" (torch.get_float32_matmul_precision()), "ieee", "tf32", "tf32x3", "bf16x3".
        recompute: keep no gates for the backward pass; rebuild them there with one product.
        zoneout: broadcastable to (B,T,U), 1 where a unit takes its new state and 0 where it keeps the old: z becomes
            1 - zoneout (1 - z). Values between are allowed: the mean over masks is what a trained model is run with.
        gradient_clip: bound c of the gradient that each step passes to the state entering it, elementwise in [-c, c],
            in the backward pass. The gradient of the step's own output is added after that; padding passes it as it is.
        layer_norm: "separate" or "joint", or `tritongru.LayerNorm` with its scales; needs `reset_after`.
        backend: "auto", "triton", "aten", "numba", "eager" or "reference".

    Returns:
        outputs (B,T,U), or (T,B,U) if `time_major`; final state (B,U).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or name, before anything runs.
        UnsupportedError: a named backend cannot run the call.

    Note:
        No atomics: a repeated run gives the same bits. Second derivatives are computed by the reference, but for
        those of torch's own GRU on a CPU. Under `torch.autocast` the computation is in autocast's dtype, with the
        state in float32 inside the scan.

    Source: Cho et al. 2014 (arXiv 1406.1078); tf.keras.layers.GRU v2.9; torch.nn.GRU for layout="torch".

    >>> x, w, r = torch.randn(2, 5, 3), torch.randn(3, 12), torch.randn(4, 12)
    >>> outputs, state = gru(x, w, r)
    >>> outputs.shape, torch.equal(outputs[:, -1], state)
    (torch.Size([2, 5, 4]), True)
    """
    if kernel is None:
        raise TypeError("`kernel` must be a torch.Tensor, got NoneType; `tritongru.scan` takes gates without a kernel")
    arguments = Arguments(
        x, kernel, recurrent_kernel, bias, initial_state, activation, recurrent_activation, reset_after, mask, lengths,
        resets, reset_state, input_dropout, recurrent_dropout, zero_output_for_mask, go_backwards, time_major, layout,
        precision, recompute, zoneout, gradient_clip, layer_norm,
    )  # fmt: skip
    outputs, state, _ = run(arguments, backend)
    return arguments.in_order_of_processing(outputs), state


def scan(
    gates: Tensor,
    recurrent_kernel: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation="tanh",
    recurrent_activation="sigmoid",
    reset_after: bool = True,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | str | None = None,
    recurrent_dropout=None,
    zero_output_for_mask: bool = False,
    go_backwards: bool = False,
    time_major: bool = False,
    layout: str = "keras",
    precision: str = "auto",
    recompute: bool = False,
    zoneout: Tensor | None = None,
    gradient_clip: float | None = None,
    layer_norm: LayerNorm | str | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence alone: `tritongru.gru` whose input is projected already, x W + b.

    z, r = g(gates + h R + c);  n = f(gates_h + r * (h R_h + c_h));  h_t = z * h + (1 - z) * n

    For gate inputs that are no product with a kernel of one's own: rows of an embedding, a normalised, quantised or
    low-rank product. `gates` is read where it lies; only a mask makes a copy, without what stands in the padding.

    Args:
        gates: (B,T,3U) floating point, gates z, r, h, with the input's bias in it; r, z, n in layout="torch"; (T,B,3U)
            if `time_major`.
        recurrent_kernel: (U,3U); (3U,U) in layout="torch"; or N heads, as in `tritongru.gru`.
        bias: (3U,) the recurrent bias, b_hh in layout="torch"; None without.
        others: as `tritongru.gru`.

    Returns:
        outputs (B,T,U), or (T,B,U) if `time_major`; final state (B,U).

    Raises:
        TypeError, ValueError, UnsupportedError: as `tritongru.gru`; backend="aten" cannot run it.

    >>> table, tokens = torch.nn.Embedding(100, 3 * 4), torch.randint(100, (2, 5))
    >>> outputs, state = scan(table(tokens), torch.randn(4, 12))
    >>> outputs.shape, torch.equal(outputs[:, -1], state)
    (torch.Size([2, 5, 4]), True)
    """
    arguments = Arguments(
        gates, None, recurrent_kernel, bias, initial_state, activation, recurrent_activation, reset_after, mask,
        lengths, resets, reset_state, None, recurrent_dropout, zero_output_for_mask, go_backwards, time_major, layout,
        precision, recompute, zoneout, gradient_clip, layer_norm,
    )  # fmt: skip
    outputs, state, _ = run(arguments, backend)
    return arguments.in_order_of_processing(outputs), state


def run(arguments: Arguments, backend: str = "auto") -> tuple[Tensor, Tensor, Decision]:
    """Run a call.

    Returns:
        outputs as `gru`, but always at the time index of the input, also where `go_backwards`; final state (B,U); the
        decision.
    """
    if has_heads(arguments):
        return run_all([arguments], backend)[0]
    kind = None if torch.compiler.is_compiling() else repeats.kind_of(arguments, backend)
    if (found := repeats.again(arguments, kind)) is not None:
        return found
    flops.register_where_loaded()
    call = check(arguments)
    outputs, state, decision = _run_checked(call, backend)
    repeats.remember(kind, call, decision)
    return outputs, state, decision


def run_all(calls: Sequence[Arguments], backend: str = "auto") -> list[tuple[Tensor, Tensor, Decision]]:
    """Run calls that need nothing of each other, as the directions of a layer: at once where their backend can.

    Returns:
        of each what `run` returns.
    """
    if any(map(has_heads, calls)):
        heads = [split_heads(a) if has_heads(a) else [a] for a in calls]
        each = iter(run_all([head for call in heads for head in call], backend))
        # Not `islice`: compiled by torch 2.6 it begins anew with each call.
        whole = [zip(*[next(each) for _ in call], strict=True) for call in heads]
        return [(torch.cat(y, dim=-1), torch.cat(states, dim=-1), decisions[0]) for y, states, decisions in whole]
    x = calls[0].x
    if isinstance(x, Tensor) and all(a.x is x for a in calls):
        # Cast once, so that it stays one input under autocast, and is multiplied once.
        x = in_autocast_dtype(Arguments(x, None, x.new_empty(0))).x
        calls = [changed(a, x=x) for a in calls]
    flops.register_where_loaded()
    checked = [check(a) for a in calls]
    if (signature := _signature_of_all(checked)) is not None:
        decision = dispatch.decide(signature, backend)
        if dispatch.may_run_at_once(decision, signature):
            problems = _canonicalize_all(checked)
            if are_alike([problem.inputs for problem in problems]):
                return _run_at_once(checked, problems, signature, decision, backend)
    return [_run_checked(call, backend) for call in checked]


def _signature_of_all(calls: Sequence[Call]) -> Signature | None:
    """Return the signature of several calls at once; None for one call, or if more than directions differ."""
    first, *others = (call.signature for call in calls)
    if not others or any(_forwards(first) != _forwards(other) for other in others):
        return None
    return changed(first, members=len(calls))


def _forwards(signature: Signature) -> Signature:
    return changed(signature, variant=changed(signature.variant, reverse=False))


def _canonicalize_all(calls: Sequence[Call]) -> list[Problem]:
    """Return the canonical forms of calls; steps are cleared of padding once where the calls share them."""
    first = calls[0].arguments
    steps = clear_padding(first)
    problems = []
    for a, s in calls:
        is_shared = a.x is first.x and a.mask is first.mask and a.lengths is first.lengths
        problems.append(canonicalize(a, s.variant, steps if is_shared else None))
    return problems


def _run_at_once(calls: Sequence[Call], problems: Sequence[Problem], s: Signature, decision: Decision, backend: str):
    outputs, states = run_members(problems, _setting_of(s, decision, backend))
    if _continues(decision, backend) and not s.tracing:
        decision = dispatch.after_run(decision, s)
    # Not `unbind`, whose results nobody may write into; a state is small, and somebody's to keep.
    return [(call.arguments.by_time(outputs[m]), states[m].clone(), decision) for m, call in enumerate(calls)]


def _run_checked(call: Call, backend: str) -> tuple[Tensor, Tensor, Decision]:
    decision = dispatch.decide(call.signature, backend)
    if backend == "auto":
        dispatch.warn_of_fallback(decision, call.signature)
    if decision.backend == "reference":
        return *_run_reference(call), decision
    a, s = call
    problem = canonicalize(a, s.variant)
    if decision.backend == "aten":
        outputs, state = run_aten(problem, s.precision, s.wants_gradients)
    else:
        outputs, state = run_scan(problem, _setting_of(s, decision, backend))
        if _continues(decision, backend) and not s.tracing:
            decision = dispatch.after_run(decision, s)
    return a.by_time(outputs), state, decision


def _continues(decision: Decision, backend: str) -> bool:
    """Return whether a call that the kernels fail continues elsewhere."""
    return backend == "auto" and decision.backend == "triton"


def _setting_of(s: Signature, decision: Decision, backend: str) -> Setting:
    name = "auto" if _continues(decision, backend) else decision.backend
    return setting_of(s.precision, s.recompute, s.wants_gradients, name)


def explain_call(arguments: Arguments, backend: str = "auto") -> Decision:
    """Return the decision for a call, without running it; for several heads that for one of them."""
    return explain_all([arguments], backend)


def explain_all(calls: Sequence[Arguments], backend: str = "auto") -> Decision:
    """Return the decision for `run_all`, without running it."""
    calls = [head for a in calls for head in (split_heads(a) if has_heads(a) else [a])]
    checked = [check(a) for a in calls]
    return dispatch.explain(_signature_of_all(checked) or checked[0].signature, backend)


def _run_reference(call: Call) -> tuple[Tensor, Tensor]:
    a = call.arguments
    own = dict(zip(Arguments._fields, a, strict=True))
    del own["precision"], own["recompute"]
    names = ("activation", "recurrent_activation")
    for name, is_known in zip(names, call.signature.activations_known, strict=True):
        if not is_known:
            own[name] = activations.Checked(activations.get(own[name]), name)
    outputs, state = gru_reference(**own)
    if a.x.shape[0 if a.time_major else 1] == 0:
        # Without a step it is the initial state itself, which is the caller's.
        state = state.clone()
    return a.in_order_of_processing(outputs), state
