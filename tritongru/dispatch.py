"""Which backend runs a call, and every reason against the others.

Nothing here touches data: a decision follows from the call's signature alone, so it costs no device synchronisation,
can be asked for without running anything (`tritongru.explain`), and is kept for the next call with this signature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from . import environment, faults
from .backends import aten, eager, numba
from .backends.operators import WHOLE
from .backends.triton import reasons as triton
from .call.check import Signature
from .call.errors import BACKENDS, UnsupportedError, check_backend, warn_once
from .call.recording import is_exporting_to_onnx, is_recorded
from .cpu_order import order_on_cpu

MOST_DECISIONS = 1024


@dataclass(frozen=True)
class Decision:
    """The chosen backend and why the others were not.

    Attributes:
        backend: "triton", "aten", "numba", "eager" or "reference".
        rejected: dict from backend name to the tuple of its reasons, each naming the argument and its value.
        launches: how the Triton kernels would be launched, a line for each; empty for the other backends.
        members: how many scans of the call run at once, as two directions or several heads; 1: one after another.
        layers: of stacked layers on a GPU, how they follow each other: whether they overlap, or why not.
    """

    backend: str
    rejected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    launches: tuple[str, ...] = ()
    members: int = 1
    layers: str = ""

    def __str__(self) -> str:
        at_once = f", {self.members} scans at once" if self.members > 1 else ""
        lines = [f"backend: {self.backend}{at_once}", *(f"  {launch}" for launch in self.launches)]
        lines += [f"  {self.layers}"] if self.layers else []
        for name, reasons in self.rejected.items():
            lines.append(f"  not {name}: " + "; ".join(reasons))
        return "\n".join(lines)


REASONS_AGAINST: dict[str, Callable[[Signature], list[str]]] = {
    "triton": triton.reasons_against,
    "aten": aten.reasons_against,
    "numba": numba.reasons_against,
    "eager": eager.reasons_against,
    "reference": lambda signature: [],  # it runs everything
}


# Where the backend can run several scans of one call at once, and whether it does so for a call.
RUNS_AT_ONCE: dict[str, Callable[[Signature], bool]] = {
    "triton": triton.runs_at_once,
    "eager": eager.runs_at_once,
    "numba": numba.runs_at_once,
}


def decide(signature: Signature, backend: str = "auto") -> Decision:
    """Choose the backend for a call.

    Args:
        signature: of the call. backend: "auto", or the one backend to use.

    Raises:
        ValueError: `backend` is not a known name.
        UnsupportedError: a named backend cannot run the call; carries every reason.
    """
    if not isinstance(backend, str):
        check_backend(backend)
    if signature.tracing:  # what is kept would not be traced
        return _decide(signature, backend)
    # Whether scans run at once may depend on the number of threads.
    threads = torch.get_num_threads() if signature.members > 1 else 1
    return _decide_once(signature, backend, environment.changes(), threads)


def may_run_at_once(decision: Decision, signature: Signature) -> bool:
    """Return whether the scans of a call go to the backend together: it runs them at once, or sees when it runs."""
    if signature.tracing:
        # Sizes are not known yet.
        return decision.backend == "triton" and not is_recorded() and not is_exporting_to_onnx()
    return decision.members > 1


def explain(signature: Signature, backend: str = "auto") -> Decision:
    """Return the decision, and how the Triton kernels would be launched if it is for them; raises as `decide`."""
    decision = decide(signature, backend)
    return replace(decision, launches=triton.describe_launches(signature)) if decision.backend == "triton" else decision


@functools.lru_cache(maxsize=MOST_DECISIONS)
def _decide_once(signature: Signature, backend: str, changes: int, threads: int) -> Decision:
    return _decide(signature, backend)


def forget() -> None:
    """Make every decision anew."""
    _decide_once.cache_clear()


def _decide(signature: Signature, backend: str) -> Decision:
    check_backend(backend)
    decision = _decide_one(signature, backend)
    can_run_at_once = RUNS_AT_ONCE.get(decision.backend)
    if signature.members == 1 or can_run_at_once is None or not can_run_at_once(signature):
        return decision
    return replace(decision, members=signature.members)


def _decide_one(signature: Signature, backend: str) -> Decision:
    if backend == "auto":
        return _without_operators(_choose(signature), signature)
    if reasons := REASONS_AGAINST[backend](signature):
        raise UnsupportedError(
            f"backend={backend!r} cannot run this call: " + "; ".join(reasons), {backend: tuple(reasons)}
        )
    return Decision(backend, {name: (f"backend={backend!r} was named",) for name in BACKENDS if name != backend})


def _choose(signature: Signature) -> Decision:
    rejected: dict[str, tuple[str, ...]] = {}
    chosen = None
    for name in preference(signature):
        reasons = REASONS_AGAINST[name](signature)
        if name == "triton" and not reasons:
            reasons = triton.reasons_against_trying(signature)
        if reasons:
            rejected[name] = tuple(reasons)
        elif chosen is None:
            chosen = name
        else:
            rejected[name] = (f"{chosen} is preferred for this call on device={signature.device!r}",)
    assert chosen is not None, "the reference runs everything"
    return Decision(chosen, rejected)


def _without_operators(decision: Decision, signature: Signature) -> Decision:
    """Take torch's own GRU, or the reference, where "auto" chose an operator and none can run."""
    needs_operators = decision.backend == "triton" or (decision.backend in WHOLE and signature.wants_gradients)
    if signature.tracing or not needs_operators:
        return decision
    reasons = environment.reasons_against_operators()
    if not reasons:
        return decision
    chosen = "reference" if aten.reasons_against(signature) else "aten"
    rejected = decision.rejected | {name: reasons for name in ("triton", *WHOLE)}
    return Decision(chosen, {name: why for name, why in rejected.items() if name != chosen})


def warn_of_fallback(decision: Decision, signature: Signature) -> None:
    """Warn, once, where "auto" had to pass over the kernels, or over every operator, for what is installed."""
    if decision.backend != "triton":
        faults.warn_of_environment(signature.device, signature.index, decision.rejected["triton"])
    if decision.backend == "reference" and not signature.tracing:
        reasons = environment.reasons_against_operators()
        if reasons and decision.rejected["eager"] == reasons:
            warn_once(f"{'; '.join(reasons)}; backend='auto' continues on the reference, which is slow")


def after_run(decision: Decision, signature: Signature) -> Decision:
    """Return what a call that was to run on triton did run on: eager where the kernels failed it."""
    failure = faults.failure_of(faults.Scan.of_signature(signature))
    if failure is None:
        return decision
    rejected = {name: why for name, why in decision.rejected.items() if name != "eager"}
    return Decision("eager", {"triton": (f"it failed this call ({failure.cause})",), **rejected})


def preference(signature: Signature) -> tuple[str, ...]:
    """Return the backends in the order in which "auto" tries them."""
    if signature.tracing and (is_recorded() or is_exporting_to_onnx()):
        # What reads the trace knows torch's own GRU, and not this package's operators.
        return ("aten", "triton", "numba", "eager", "reference")
    shape = signature.shape
    if signature.device == "cpu" and shape is not None:
        torch_first, large = signature.variant.reset_gate_first, environment.has_large_cache()
        order = order_on_cpu(shape, signature.wants_gradients, torch_first, large)
        return ("triton", *order, "reference")
    # torch's own GRU is one call where it applies, ahead of a loop of torch operations.
    return ("triton", "aten", "numba", "eager", "reference")
