"""`tritongru.gru`: the GRU as a function. Checks, decides, runs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import activations, dispatch, faults, ops, spec
from .aten import run_aten
from .dispatch import Decision, Facts
from .gradients import wants_gradients
from .precision import resolve_precision
from .reference import gru_reference
from .sequence import autocast_arguments, canonicalize, check_arguments
from .spec import Shape, Variant


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
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The Gated Recurrent Unit over a sequence.

    h_t = z_t * h + (1 - z_t) * n_t, with z, r = g(x W + b + h R + c) and n = f(x W_h + b_h + r * (h R_h + c_h)), or
    n = f(x W_h + b_h + (r * h) R_h) where `reset_after` is False.

    Args:
        x: (B,T,I) floating point; (T,B,I) if `time_major`, and then every argument with a time axis has it first.
        kernel: (I,3U), gates z, r, h; (3U,I), gates r, z, n in layout="torch".
        recurrent_kernel: (U,3U); (3U,U) in layout="torch".
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
        backend: "auto", "triton", "aten", "eager" or "reference".

    Returns:
        outputs (B,T,U), or (T,B,U) if `time_major`; final state (B,U).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or name, before anything runs.
        UnsupportedError: a named backend cannot run the call.

    Note:
        No atomics: a repeated run gives the same bits. Second derivatives are computed by the reference. Under
        `torch.autocast` the computation is in autocast's dtype, with the state in float32 inside the scan.

    Source: Cho et al. 2014 (arXiv 1406.1078); tf.keras.layers.GRU v2.9; torch.nn.GRU for layout="torch".

    >>> x, w, r = torch.randn(2, 5, 3), torch.randn(3, 12), torch.randn(4, 12)
    >>> outputs, state = gru(x, w, r)
    >>> outputs.shape, torch.equal(outputs[:, -1], state)
    (torch.Size([2, 5, 4]), True)
    """
    arguments = dict(
        x=x, kernel=kernel, recurrent_kernel=recurrent_kernel, bias=bias, initial_state=initial_state,
        activation=activation, recurrent_activation=recurrent_activation, reset_after=reset_after, mask=mask,
        lengths=lengths, resets=resets, reset_state=reset_state, input_dropout=input_dropout,
        recurrent_dropout=recurrent_dropout, zero_output_for_mask=zero_output_for_mask, go_backwards=go_backwards,
        time_major=time_major, layout=layout, precision=precision, recompute=recompute,
    )  # fmt: skip
    outputs, state, _ = run(arguments, backend)
    outputs = flip_if_backwards(outputs, arguments)
    return outputs, state


def flip_if_backwards(outputs: Tensor, arguments: dict) -> Tensor:
    """Return `outputs` of `run` in the order of processing."""
    return outputs.flip(0 if arguments["time_major"] else 1) if arguments["go_backwards"] else outputs


def run(arguments: dict, backend: str = "auto") -> tuple[Tensor, Tensor, Decision]:
    """Run the call that `arguments` (those of `gru`) describe.

    Returns:
        outputs as `gru`, but always at the time index of the input, also where `go_backwards`; final state (B,U); the
        decision.
    """
    spec.check_choice("backend", backend, ("auto", *spec.BACKENDS))
    if not isinstance(arguments["x"], Tensor):
        raise TypeError(f"`x` must be a torch.Tensor, got {type(arguments['x']).__name__}")
    checked = check_arguments(autocast_arguments(arguments))
    facts = describe(checked)
    decision = dispatch.decide(facts, backend)
    if backend == "auto":
        decision = _adjust(decision, facts)
    if decision.backend == "reference":
        outputs, state = _run_reference(checked)
        return outputs, state, decision
    problem = canonicalize(checked)
    if decision.backend == "aten":
        outputs, state = run_aten(problem)
    elif decision.backend == "triton" and backend == "auto":
        outputs, state = ops.run_scan(problem, "auto")
        if not facts.tracing:
            decision = dispatch.after_run(decision, facts)
    else:
        outputs, state = ops.run_scan(problem, decision.backend)
    return (outputs if checked["time_major"] else outputs.transpose(0, 1)), state, decision


def _adjust(decision: Decision, facts: Facts) -> Decision:
    """Warn where "auto" had to pass over the kernels, and take the reference where no operator can run."""
    if decision.backend != "triton":
        faults.warn_of_environment(facts.device, facts.device_index, decision.rejected["triton"])
    if facts.tracing or decision.backend not in ("triton", "eager"):
        return decision
    reasons = faults.reasons_against_operators()
    if not reasons:
        return decision
    faults.warn_once(f"{'; '.join(reasons)}; backend='auto' continues on the reference, which is slow")
    rejected = decision.rejected | {name: reasons for name in ("triton", "eager")}
    return Decision("reference", {name: why for name, why in rejected.items() if name != "reference"})


def explain_call(arguments: dict, backend: str = "auto") -> Decision:
    """Return the decision for the call that `arguments` describe, without running it."""
    facts = describe(check_arguments(autocast_arguments(arguments)))
    decision = dispatch.decide(facts, backend)
    return replace(decision, launches=dispatch.describe_launches(facts)) if decision.backend == "triton" else decision


def describe(checked: dict) -> Facts:
    """Return what a decision depends on, of checked arguments."""
    x = checked["x"]
    f = activations.resolve(checked["activation"], "activation")
    g = activations.resolve(checked["recurrent_activation"], "recurrent_activation")
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    time, batch = (0, 1) if checked["time_major"] else (1, 0)
    units = checked["recurrent_kernel"].shape[0 if checked["layout"] == "keras" else 1]
    return Facts(
        device=x.device.type,
        dtype=x.dtype,
        variant=Variant(f.name, g.name, bool(checked["reset_after"])),
        units=units,
        shape=None if tracing else Shape(x.shape[batch], x.shape[time], x.shape[2], units),
        activation_known=activations.TABLE.get(f.name) is f,
        recurrent_activation_known=activations.TABLE.get(g.name) is g,
        has_mask=checked["mask"] is not None or checked["lengths"] is not None,
        has_resets=checked["resets"] is not None,
        has_bias=checked["bias"] is not None,
        input_dropouts=len(checked["input_dropout"]),
        recurrent_dropouts=len(checked["recurrent_dropout"]),
        precision=resolve_precision(checked["precision"]),
        recompute=bool(checked["recompute"]),
        tracing=tracing,
        transformed=dispatch.is_transformed(),
        device_index=x.device.index or 0,
        wants_gradients=_wants_gradients(checked),
    )


def _wants_gradients(checked: dict) -> bool:
    values = (checked[name] for name in ("x", "kernel", "recurrent_kernel", "bias", "initial_state", "reset_state"))
    return wants_gradients(t for value in values for t in (value if isinstance(value, tuple) else (value,)))


def _run_reference(checked: dict) -> tuple[Tensor, Tensor]:
    own = {name: value for name, value in checked.items() if name not in ("precision", "recompute")}
    for name in ("input_dropout", "recurrent_dropout"):
        own[name] = own[name] or None
    outputs, state = gru_reference(**own)
    return flip_if_backwards(outputs, checked), state
