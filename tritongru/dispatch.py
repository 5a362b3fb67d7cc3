"""Which backend runs a call, and every reason against the others.

Nothing here touches data: a decision follows from the call's description alone, so it costs no device synchronisation
and can be asked for without running anything (`tritongru.explain`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import activations, choices, faults, spec
from .devices import device_limits
from .faults import reasons_against_environment
from .onnx_gru import can_record
from .padding import is_exporting_to_onnx
from .spec import Shape, UnsupportedError, Variant, is_interpreted
from .tables import Key


@dataclass(frozen=True)
class Facts:
    """All that a decision depends on. `shape` is None while tracing, when sizes are symbols."""

    device: str
    dtype: torch.dtype
    variant: Variant
    units: int
    shape: Shape | None
    activation_known: bool = True
    recurrent_activation_known: bool = True
    has_mask: bool = False
    has_resets: bool = False
    has_bias: bool = True
    input_dropouts: int = 0
    recurrent_dropouts: int = 0
    precision: str = "ieee"
    recompute: bool = False
    tracing: bool = False
    transformed: bool = False
    device_index: int = 0
    wants_gradients: bool = False

    def key(self, kernel: str) -> Key:
        """Return what a launch configuration of "forward" or "backward" is chosen for."""
        return Key.of(
            kernel, self.dtype, self.precision, self.units, self.recurrent_dropouts > 0,
            self.has_mask or self.has_resets, not self.variant.reset_after,
        )  # fmt: skip

    def call(self) -> faults.Call:
        """Return what the memory of failures knows this call by."""
        v = self.variant
        return faults.Call(
            self.device, self.device_index, self.dtype, self.units, v.activation, v.recurrent_activation,
            v.reset_after, self.has_mask, self.has_resets, self.recurrent_dropouts, self.precision,
        )  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """The chosen backend and why the others were not.

    Attributes:
        backend: "triton", "aten", "eager" or "reference".
        rejected: dict from backend name to the tuple of its reasons, each naming the argument and its value.
        launches: how the Triton kernels would be launched, a line for each; empty for the other backends.
    """

    backend: str
    rejected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    launches: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"backend: {self.backend}", *(f"  {launch}" for launch in self.launches)]
        for name, reasons in self.rejected.items():
            lines.append(f"  not {name}: " + "; ".join(reasons))
        return "\n".join(lines)


def is_transformed() -> bool:
    """Return whether a torch.func transform or forward-mode differentiation is on: operators have no rule for it."""
    # Without this, a dual number would pass through an operator and lose its tangent without a word.
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


# Dynamo asks while it traces, and guards the answer by itself; see torch.compiler.assume_constant_result.
is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def decide(facts: Facts, backend: str = "auto") -> Decision:
    """Choose the backend for a call.

    Args:
        facts: the call. backend: "auto", or the one backend to use.

    Raises:
        ValueError: `backend` is not a known name.
        UnsupportedError: a named backend cannot run the call; carries every reason.
    """
    spec.check_choice("backend", backend, ("auto", *spec.BACKENDS))
    if backend != "auto":
        reasons = CHECKS[backend](facts)
        if reasons:
            raise UnsupportedError(
                f"backend={backend!r} cannot run this call: " + "; ".join(reasons), {backend: tuple(reasons)}
            )
        return Decision(
            backend, {name: (f"backend={backend!r} was named",) for name in spec.BACKENDS if name != backend}
        )

    rejected: dict[str, tuple[str, ...]] = {}
    chosen = None
    for name in preference(facts):
        reasons = CHECKS[name](facts)
        if name == "triton" and not reasons:
            reasons = reasons_against_trying(facts)
        if reasons:
            rejected[name] = tuple(reasons)
        elif chosen is None:
            chosen = name
        else:
            rejected[name] = (f"{chosen} is preferred for this call on device={facts.device!r}",)
    assert chosen is not None, "the reference runs everything"
    return Decision(chosen, rejected)


def after_run(decision: Decision, facts: Facts) -> Decision:
    """Return what a call that was to run on triton did run on: eager where the kernels failed it."""
    failure = faults.failure_of(facts.call())
    if failure is None:
        return decision
    rejected = {name: why for name, why in decision.rejected.items() if name != "eager"}
    return Decision("eager", {"triton": (f"it failed this call ({failure.cause})",), **rejected})


def preference(facts: Facts) -> tuple[str, ...]:
    """Return the backends in the order in which "auto" tries them."""
    if torch.jit.is_tracing() or is_exporting_to_onnx():
        # What reads the trace knows torch's own GRU, and not this package's operators.
        return ("aten", "triton", "eager", "reference")
    if facts.device == "cpu" and facts.shape is not None and prefers_eager(facts.shape, facts.wants_gradients):
        return ("triton", "eager", "aten", "reference")
    # torch's own GRU is one call where it applies, ahead of a loop of torch operations.
    return ("triton", "aten", "eager", "reference")


@dataclass(frozen=True)
class Threshold:
    """From which size the eager scan is faster than torch's GRU: from `steps` on, or where all the others are reached.

    Attributes:
        steps: T alone. least_steps: T. products: T B U U. rows_per_unit: T B / U, which pays for copying weights.
    """

    steps: int
    least_steps: int
    products: int
    rows_per_unit: float


# The eager scan costs more per call and less per step: its weights are copied once, its calls pass an operator.
# The sizes come from trials on a CPU; docs/performance.md has what the choice gives beside torch's own GRU.
EAGER_FROM = {"training": Threshold(32, 16, 1 << 24, 0.5), "inference": Threshold(512, 48, 1 << 27, 0.5)}


def prefers_eager(shape: Shape, wants_gradients: bool) -> bool:
    """Return whether the eager scan is expected to be faster than torch's own GRU on a CPU."""
    least = EAGER_FROM["training" if wants_gradients else "inference"]
    rows = shape.time * shape.batch
    if shape.time >= least.steps:
        return True
    is_large = rows * shape.units**2 >= least.products and rows >= least.rows_per_unit * shape.units
    return shape.time >= least.least_steps and is_large


def reasons_against_reference(facts: Facts) -> list[str]:
    """The reference runs everything."""
    return []


def reasons_against_eager(facts: Facts) -> list[str]:
    """The eager scan needs derivatives that are functions of the output."""
    return _reasons_against_transforms(facts) + _reasons_against_activations(facts, "derivative")


def reasons_against_aten(facts: Facts) -> list[str]:
    """torch's own GRU runs one variant only."""
    v, reasons = facts.variant, _reasons_against_transforms(facts)
    if v.activation != "tanh":
        reasons.append(f"activation={v.activation!r} is not 'tanh'")
    if v.recurrent_activation != "sigmoid":
        reasons.append(f"recurrent_activation={v.recurrent_activation!r} is not 'sigmoid'")
    if not v.reset_after:
        reasons.append("reset_after=False")
    if facts.has_mask:
        reasons.append("mask or lengths given")
    if facts.has_resets:
        reasons.append("resets given")
    if facts.input_dropouts > 1:
        reasons.append(f"input_dropout has {facts.input_dropouts} masks")
    if facts.recurrent_dropouts:
        reasons.append("recurrent_dropout given")
    if facts.recompute:
        reasons.append("recompute=True")
    if facts.precision not in ("ieee", "tf32"):
        reasons.append(f"precision={facts.precision!r}")
    if facts.tracing and is_exporting_to_onnx() and can_record():
        if facts.dtype == torch.float64:
            reasons.append("dtype=torch.float64: onnxruntime has no such GRU")
    elif facts.tracing and not torch.jit.is_tracing():
        reasons.append("torch.compile and torch.export cannot trace torch's GRU")
    elif facts.shape is not None and 0 in (facts.shape.time, facts.shape.batch):
        reasons.append(f"an empty input: T={facts.shape.time}, B={facts.shape.batch}")
    return reasons


def reasons_against_triton(facts: Facts) -> list[str]:
    """The Triton kernels: what the package, the device and the variant allow."""
    reasons = [*reasons_against_environment(facts.device, facts.device_index)]
    reasons += _reasons_against_transforms(facts)
    if facts.device == "cpu" and not is_interpreted():
        reasons.append("device='cpu' and TRITON_INTERPRET is not set")
    elif facts.device not in ("cpu", "cuda"):
        reasons.append(f"device={facts.device!r} is not 'cuda'")
    if facts.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"dtype={facts.dtype} is not float32, float16 or bfloat16")
    reasons += _reasons_against_activations(facts, "kernel_id")
    return reasons


CHECKS = {
    "triton": reasons_against_triton,
    "aten": reasons_against_aten,
    "eager": reasons_against_eager,
    "reference": reasons_against_reference,
}


def reasons_against_trying(facts: Facts) -> list[str]:
    """Why "auto" passes over kernels that could be named: the interpreter's pace, or what happened to such a call."""
    if facts.device == "cpu":
        return ["device='cpu': Triton's interpreter is for testing, not for speed"]
    return _reasons_from_failures(facts) or _reasons_from_speed(facts)


def _reasons_from_speed(facts: Facts) -> list[str]:
    # One step is one launch in any schedule.
    if facts.shape is None or facts.shape.time == 1 or reasons_against_aten(facts):
        return []
    device = device_limits(torch.device(facts.device, facts.device_index))
    reason = choices.reason_for_aten(facts.key("forward"), facts.shape.batch, facts.wants_gradients, device)
    return [reason] if reason else []


def describe_launches(facts: Facts) -> tuple[str, ...]:
    """Return how the kernels would be launched for a call, and why so; nothing while sizes are unknown."""
    if facts.shape is None:
        return ()
    device = device_limits(torch.device(facts.device, facts.device_index))
    lines = []
    for kernel in ("forward", "backward") if facts.wants_gradients else ("forward",):
        choice = choices.choose(facts.key(kernel), facts.shape.batch, device)
        lines.append(f"{kernel}: {choice.config} ({choice.source}): {choice.reason}")
    return tuple(lines)


def _reasons_from_failures(facts: Facts) -> list[str]:
    # While tracing, the operator looks for itself at every run.
    if facts.tracing or faults.is_worth_trying(call := facts.call()):
        return []
    failure = faults.failure_of(call)
    return [] if failure is None else [f"it failed such a call before ({failure.cause})"]


def _reasons_against_transforms(facts: Facts) -> list[str]:
    return (
        ["a torch.func transform or forward-mode differentiation (grad, vmap, jvp) is active"]
        if facts.transformed
        else []
    )


def _reasons_against_activations(facts: Facts, needed: str) -> list[str]:
    reasons = []
    v = facts.variant
    for argument, name, known in (
        ("activation", v.activation, facts.activation_known),
        ("recurrent_activation", v.recurrent_activation, facts.recurrent_activation_known),
    ):
        if not known:
            reasons.append(f"{argument}={name!r} is not one of this package's activations")
        elif getattr(activations.TABLE[name], needed) is None:
            reasons.append(f"{argument}={name!r}: its derivative is not a function of its output")
    return reasons
