"""The scan as two `torch.library` operators, with their shapes for tracing. Both are opaque to `torch.compile`.

`tritongru::scan` owns everything between the input and the outputs, the input projection included, so that `recompute`
can keep only the input, the states and the weights. `tritongru::scan_backward` returns the gradients of its tensors.
`gradients.py` has the second derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from ..call.problem import Inputs, Variant
from ..call.recording import is_traced
from . import eager, gradients, mapping, numba
from .gradients import SAVE_GATES, SAVE_NOTHING, Saved, Setting
from .precision import product_precision
from .triton import run as triton

# The arguments of both operators, in the order of the fields of Inputs, Variant and Setting.
_INPUTS = (
    "Tensor x, Tensor? w, Tensor? bias_x, Tensor u, Tensor? bias_h, Tensor h0, Tensor? mask, Tensor? resets, "
    "Tensor? fresh, Tensor? drop, Tensor? keep, "
    "Tensor? scale"
)
VARIANT = (
    "str activation, str recurrent_activation, bool reset_after, bool zero_output_for_mask, bool reverse, "
    "bool reset_gate_first, float? gradient_clip, str? layer_norm, float epsilon"
)
SETTING = "str precision, str save, str backend"
SAVED = "Tensor out, Tensor states, Tensor gates"

# The backends that own everything between the inputs and the gradients, and save states and gates their own way.
WHOLE = {"eager": eager, "numba": numba}

LIBRARY = torch.library.Library("tritongru", "FRAGMENT")


def define(name: str, arguments: str, returns: str, run, fake) -> None:
    """Make an operator of `run`, with the shapes that `fake` tells a compiler."""
    LIBRARY.define(f"{name}({arguments}) -> {returns}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tritongru::{name}", fake, lib=LIBRARY)


def _tensors(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


def split(arguments: Sequence[Any], *kinds: type) -> list[Any]:
    """Return an operator's arguments as one value of each of `kinds`, named tuples; what is left over as a tuple."""
    values = iter(arguments)
    found = [kind(*islice(values, len(kind._fields))) for kind in kinds]
    return [*found, tuple(values)]


def is_watched(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether something looks at the operators of a call: a compiler, transform, mode or subclass of Tensor.

    torch itself does where a tensor is a view of numbers whose signs are yet to be changed, as the imaginary part of a
    conjugate, or zeros without memory: on the way into an operator it changes them.
    """
    if is_traced() or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return True
    if torch._ops._len_torch_dispatch_stack_pre_dispatch():
        return True
    return not _PLAIN.issuperset(map(type, tensors)) or any(
        [t.is_neg() or t._is_zerotensor() for t in tensors if t is not None]
    )


_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


def forward(a: Inputs, variant: Variant, setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a scan on the backend of the setting; returns as `scan`."""
    save_gates = setting.save == SAVE_GATES
    with product_precision(a.x, setting.precision):
        if backend := WHOLE.get(setting.backend):
            return backend.run_forward(a, variant, save_gates)
        return triton.run_forward(a, variant, save_gates, setting)


def scan(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project the input and run the recurrence; arguments: Inputs, Variant, Setting.

    Returns:
        out (T,B,U), last state (B,U), states entering each step (T,B,U) or empty, gates or empty (see
        `eager.continuation`); on the backends of `WHOLE` states and gates as `eager.run_forward`.
    """
    inputs, variant, setting, _ = split(arguments, Inputs, Variant, Setting)
    return forward(inputs, variant, setting)


def result_shapes(a: Inputs, variant: Variant, setting: Setting) -> list[tuple[int, ...]]:
    """Return the shapes of a scan's results: out, last state, states and gates."""
    T, B = a.x.shape[0], a.x.shape[1]
    U, width = a.u.shape[0], 4 if variant.reset_after else 3
    is_whole = setting.backend in WHOLE
    separate = a.mask is not None or (a.resets is not None and not is_whole)
    gates = (T, B, width * U) if is_whole else (width, T, B, U)
    return [(T, B, U), (B, U), (T, B, U) if separate else (0,), gates if setting.save == SAVE_GATES else (0,)]


def _scan_shapes(*arguments) -> tuple[Tensor, ...]:
    a, variant, setting, _ = split(arguments, Inputs, Variant, Setting)
    return tuple(a.x.new_empty(shape) for shape in result_shapes(a, variant, setting))


def scan_backward(*arguments) -> tuple[Tensor, ...]:
    """Return the gradient of each tensor of `scan`, empty where it is not wanted.

    Arguments: Inputs, Variant, Setting, Saved, the gradients of `out` and of the last state (or None), and which
    gradients are wanted, one bool for each of Inputs.
    """
    a, variant, setting, saved, (d_out, d_last, wanted) = split(arguments, Inputs, Variant, Setting, Saved)
    run = WHOLE.get(setting.backend, triton).run_backward
    with product_precision(a.x, setting.precision):
        found = run(a, variant, setting, saved, d_out, d_last, Inputs(*wanted))
    return tuple(a.x.new_empty(0) if d is None else laid_out_as(d, t) for d, t in zip(found, a, strict=True))


def laid_out_as(gradient: Tensor, t: Tensor) -> Tensor:
    """Return `gradient` with the strides that `_scan_backward_shapes` tells a compiler, in memory of its own."""
    alone = gradient.untyped_storage().nbytes() == gradient.numel() * gradient.element_size()
    if alone and gradient.stride() == t.stride():
        return gradient
    like = torch.empty_like(t)
    return gradient if alone and like.stride() == gradient.stride() else like.copy_(gradient)


def _scan_backward_shapes(*arguments) -> tuple[Tensor, ...]:
    a, _, _, _, (_, _, wanted) = split(arguments, Inputs, Variant, Setting, Saved)
    return tuple(torch.empty_like(t) if want else a.x.new_empty(0) for t, want in zip(a, wanted, strict=True))


define("scan", f"{_INPUTS}, {VARIANT}, {SETTING}", _tensors(4), scan, _scan_shapes)
define(
    "scan_backward",
    f"{_INPUTS}, {VARIANT}, {SETTING}, {SAVED}, Tensor? d_out, Tensor? d_last, bool[] wanted",
    _tensors(len(Inputs._fields)),
    scan_backward,
    _scan_backward_shapes,
)


def _keep(ctx, inputs, output) -> None:
    # Else autograd fills arrays of zeros as large as the states and the gates, whose gradients nobody asks for.
    ctx.set_materialize_grads(False)
    tensors, ctx.variant, ctx.setting, _ = split(inputs, Inputs, Variant, Setting)
    ctx.present = [t is not None for t in tensors]
    out, _, states, gates = output
    ctx.save_for_backward(*(t for t in tensors if t is not None), out, states, gates)


def _differentiate(ctx, d_out, d_last, _d_states, _d_gates):
    if ctx.setting.save == SAVE_NOTHING:
        raise RuntimeError("tritongru::scan was called without saving what its gradient needs")
    kept = iter(ctx.saved_tensors)
    inputs = Inputs(*(next(kept) if present else None for present in ctx.present))
    needs, _ = split(ctx.needs_input_grad, Inputs)
    wanted = Inputs(*(bool(need) and there for need, there in zip(needs, ctx.present, strict=True)))
    result = differentiate(inputs, ctx.variant, ctx.setting, Saved(*kept), d_out, d_last, wanted)
    return (*result, *_NO_GRADIENTS)


def differentiate(a: Inputs, variant: Variant, setting: Setting, saved: Saved, d_out, d_last, wanted: Inputs) -> Inputs:
    """Return the wanted gradients of a scan's inputs, as a graph where autograd records one, None for the others."""
    if torch.is_grad_enabled():
        return gradients.differentiable_gradients(variant, a, wanted, d_out, d_last)
    is_past = setting.backend in WHOLE and is_plain_gradient((*a, *saved), d_out, d_last)
    run = scan_backward if is_past else torch.ops.tritongru.scan_backward.default
    found = run(*a, *variant, *setting, *saved, d_out, d_last, list(wanted))
    return Inputs(*(gradient if want else None for gradient, want in zip(found, wanted, strict=True)))  # type: ignore[arg-type]


def is_plain_gradient(given: Sequence[Tensor | None], d_out: Tensor | None, d_last: Tensor | None) -> bool:
    """Return whether the tensors of a backward pass, x first, are plain ones of a CPU, which nothing looks at."""
    if not given[0].is_cpu or is_watched((*given, d_out, d_last)):  # type: ignore[union-attr]
        return False
    # autograd's own map, for many gradients at once, says so by its tensors alone.
    return not any(d is not None and is_legacy_batchedtensor(d) for d in (d_out, d_last))


_NO_GRADIENTS = (None,) * len(Variant._fields + Setting._fields)


class Unwatched(torch.autograd.Function):
    """The operator `scan` for autograd alone, where nothing else looks at it (`is_watched`)."""

    @staticmethod
    def forward(ctx, *arguments):
        """Return what `scan` does."""
        results = scan(*arguments)
        _keep(ctx, arguments, results)
        ctx.mark_non_differentiable(*results[2:])
        return results

    backward = staticmethod(_differentiate)  # type: ignore[assignment]


torch.library.register_autograd("tritongru::scan", _differentiate, setup_context=_keep, lib=LIBRARY)
for _operator in (torch.ops.tritongru.scan.default, torch.ops.tritongru.scan_backward.default):
    mapping.register_loop(_operator, LIBRARY)
