"""A call like an earlier one is neither checked nor decided nor planned again.

Finding out that nothing has changed since the call before takes longer than some steps of a small layer. What is
remembered of a call is its kind: sizes, strides and choices, never a value. Weights are read anew in each call, so a
change of one takes effect at once, whichever way it was made.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import environment
from .backends.eager import short
from .backends.gradients import SAVE_GATES, Saved, Setting
from .backends.operators import differentiate, is_plain_gradient, is_watched
from .call.arguments import Arguments
from .call.check import Call, Signature, is_transformed
from .call.problem import Inputs, canonicalize
from .dispatch import Decision

MOST_KINDS = 512
EXACT = (torch.float32, torch.float64)  # the dtypes that states are kept in
# Since torch 2.8. Before, nothing tells whether a checkpoint runs a call, so that all with gradients go the whole way.
_find_saved_tensor_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd,  # type: ignore[attr-defined]
    "_top_saved_tensors_default_hooks",
    lambda _: True,
)


class Known(NamedTuple):
    """What is known of a kind of call: the decision for it, and the shorter way, None where there is none."""

    decision: Decision
    repeat: Repeat | None


_known: dict[tuple, Known] = {}
_remembering = threading.Lock()


def forget() -> None:
    """Let every kind of call go the whole way once more."""
    with _remembering:
        _known.clear()


def kind_of(a: Arguments, backend: str) -> tuple | None:
    """Return what a call depends on but for values; None for one that has to go the whole way.

    That is: one that a tracer, a mode, a transform or autocast watches, half precision, other devices than a CPU, and
    whatever goes beyond the plain GRU: masks, resets, dropout, zoneout, norms, heads, a callable as activation, or a
    choice given as a tensor, whose value may change.
    """
    (
        x, kernel, recurrent, bias, h0, f, g, after, mask, lengths, resets, fresh, input_drop, drop, zero, backwards,
        time_major, layout, precision, recompute, zoneout, clip, norm,
    ) = a  # fmt: skip
    if not (mask is lengths is resets is fresh is input_drop is drop is zoneout is norm is None):
        return None
    if not (clip is None or type(clip) in (int, float)) or not (type(after) is type(zero) is type(backwards) is bool):
        return None
    biases: Any = bias if isinstance(bias, (tuple, list)) else (bias,)
    tensors = (x, kernel, recurrent, h0, *biases)
    if torch.is_grad_enabled() and _find_saved_tensor_hooks(True):
        return None  # a checkpoint runs a call twice, and both have to save the same
    # What is no tensor, or one of another class, counts as watched.
    if is_watched(tensors) or is_transformed() or torch.is_autocast_enabled("cpu"):
        return None
    if x is None or kernel is None or recurrent is None or not x.is_cpu or x.dtype not in EXACT:
        return None
    asks = torch.is_grad_enabled()
    try:
        kinds = [
            None if t is None else (t.shape, t.stride(), t.dtype, t.is_cpu, asks and t.requires_grad) for t in tensors
        ]
        # One state for all rows is expanded on the whole way.
        if h0 is not None and (h0.dim() != 2 or x.dim() != 3 or h0.shape[0] != a.batch):
            return None
    except RuntimeError:  # sparse and nested tensors have none of that
        return None
    return (
        *kinds, f, g, after, zero, backwards, time_major, layout, precision, recompute, clip, backend,
        environment.changes(), torch.get_num_threads(), torch.get_float32_matmul_precision(),
    )  # fmt: skip


def again(a: Arguments, kind: tuple | None) -> tuple[Tensor, Tensor, Decision] | None:
    """Run a call whose kind is known and has a shorter way; results of `functional.run`, None for any other."""
    known = find(kind)
    return None if known is None or known.repeat is None else known.repeat.run(a)


def find(kind: tuple | None) -> Known | None:
    """Return what is known of a kind."""
    try:
        return _known.get(kind)  # type: ignore[arg-type]
    except TypeError:  # an argument that cannot be hashed: the whole way says which
        return None


def remember(kind: tuple | None, call: Call, decision: Decision) -> None:
    """Remember how a call ran."""
    # An activation of the caller's own is not kept alive, nor need it have a hash.
    if kind is None or not all(call.signature.activations_known) or kind in _known:
        return
    a, s = call
    inputs = canonicalize(a, s.variant).inputs
    known = Known(decision, Repeat(a, s, inputs, decision) if _is_shorter(s, inputs, decision) else None)
    with _remembering:  # one thread may not take out a kind while another looks for the oldest
        while len(_known) >= MOST_KINDS:
            del _known[next(iter(_known))]
        _known[kind] = known


def _is_shorter(s: Signature, inputs: Inputs, decision: Decision) -> bool:
    """Return whether there is a way that calls like this one can take without being looked at."""
    if s.shape is None or 0 in s.shape or s.recompute:
        return False
    if decision.backend == "eager":
        return not s.wants_gradients and short.is_short(inputs, s.variant)
    rows = (inputs.x, inputs.bias_x, inputs.bias_h, inputs.h0)
    return decision.backend == "numba" and all(t is None or t.stride(-1) == 1 for t in rows)


class Repeat:
    """How calls of one kind run without being looked at.

    Attributes:
        decision: for each of them. zeros: the state (B,U) that they begin with where none is given.
        bound: in numba, their scan. is_short: whether that is the one of few steps, which needs nothing else.
    """

    def __init__(self, a: Arguments, s: Signature, inputs: Inputs, decision: Decision):
        self.decision, self.variant, self._records = decision, s.variant, s.wants_gradients
        self._setting = Setting(s.precision, SAVE_GATES, decision.backend)
        self._is_torch, self._is_time_major = a.layout == "torch", a.time_major
        with torch.inference_mode(False):  # later calls may be outside of it
            self.zeros = torch.zeros(inputs.h0.shape, dtype=s.dtype, device=inputs.h0.device)
        self._strides = [t.stride() for t in self._tensors(a)]
        self._shape = inputs.x.shape
        # Whether both biases are one tensor, and how far the second is behind the first: 0 where it is expanded.
        self._are_one = isinstance(a.bias, Tensor) and a.bias.dim() == 2
        self._second = a.bias.stride(0) * a.bias.element_size() if self._are_one else 0  # type: ignore[union-attr]
        self.bound: Any = None
        self.is_short = False
        if decision.backend == "numba":
            numba = importlib.import_module("tritongru.backends.numba.bound")  # imports numba
            self.bound = numba.bind(inputs, s.variant, self._records, self._is_torch)
            self.is_short = isinstance(self.bound, numba.BoundShort)

    def run(self, a: Arguments) -> tuple[Tensor, Tensor, Decision]:
        """Run a call of this kind; results of `functional.run`."""
        tensors = self._tensors(a)
        if self._records:
            out, last = Recorded.apply(self, *tensors)  # type: ignore[misc]
        elif self.bound is None:
            out, last = short.run_short(self.inputs(*tensors), self.variant)
        else:
            out, last, _ = self.scan(*tensors)
        return (out if self._is_time_major else out.transpose(0, 1)), last, self.decision

    def _tensors(self, a: Arguments) -> tuple[Any, ...]:
        """Return x, the weights, h0 and the biases as the caller has them."""
        h0 = self.zeros if a.initial_state is None else a.initial_state
        biases = () if a.bias is None else (a.bias,) if isinstance(a.bias, Tensor) else a.bias
        return a.x, a.kernel, a.recurrent_kernel, h0, *biases

    def scan(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Return out (T,B,U), the last state (B,U) and, with gradients, the gates, of the caller's tensors."""
        return self.bound.run(tensors[0], self._addresses(*tensors))

    def _addresses(self, x: Tensor, kernel: Tensor, recurrent: Tensor, h0: Tensor, *biases: Tensor) -> tuple[int, ...]:
        """Return the addresses of `bound.INPUTS`."""
        first = biases[0].data_ptr() if biases else 0
        second = biases[1].data_ptr() if len(biases) == 2 else first + self._second if self._are_one else 0
        return x.data_ptr(), kernel.data_ptr(), first, recurrent.data_ptr(), second, h0.data_ptr()

    def inputs(self, x: Tensor, kernel, recurrent: Tensor, h0: Tensor, *biases: Tensor) -> Inputs:
        """Return the canonical form of tensors as the caller has them."""
        x = x if self._is_time_major else x.transpose(0, 1)
        if self._is_torch:
            kernel, recurrent = kernel.t(), recurrent.t()
        bias_x, bias_h = biases[0].unbind(0) if self._are_one else (*biases, None, None)[:2]
        return Inputs(x, kernel, bias_x, recurrent, bias_h, h0)

    def as_given(self, found: Inputs, biases: int) -> list[Tensor | None]:
        """Return the gradients of canonical inputs as those of the caller's tensors, so many biases among them."""
        x, w, bias_x, u, bias_h, h0 = found[:6]
        if x is not None and not self._is_time_major:
            x = x.transpose(0, 1)
        if self._is_torch:
            w, u = None if w is None else w.t(), None if u is None else u.t()
        if self._are_one and bias_x is not None and bias_h is not None:
            bias_x = torch.stack((bias_x, bias_h))
        return [x, w, u, h0, *(bias_x, bias_h)[:biases]]

    def gradients(self, tensors: Sequence[Tensor], out: Tensor, gates: Tensor, d_out, d_last, needs) -> list[Any]:
        """Return the gradients of the caller's tensors as they have them, None for those that nobody `needs`."""
        # What hooks on saved tensors give back need not lie as it did.
        alike = [t.stride() for t in tensors] == self._strides
        plain = alike and not torch.is_grad_enabled() and is_plain_gradient((*tensors, out, gates), d_out, d_last)
        if plain and self.bound.few is not None:
            return self._few_gradients(tensors, out, gates, d_out, d_last, needs)
        a = self.inputs(*tensors)
        x, kernel, recurrent, h0, *biases = needs
        wanted = Inputs(*[False] * len(a))._replace(  # type: ignore[arg-type]
            x=x, w=kernel, u=recurrent, h0=h0,
            bias_x=a.bias_x is not None and biases[0], bias_h=a.bias_h is not None and biases[-1],
        )  # fmt: skip
        saved = Saved(out, out.new_empty(0), gates)
        if plain:
            found = self.bound.run_backward(a, saved, d_out, d_last, wanted)
        else:
            found = differentiate(a, self.variant, self._setting, saved, d_out, d_last, wanted)
        return self.as_given(found, len(biases))

    def _few_gradients(self, tensors: Sequence[Tensor], out: Tensor, gates: Tensor, d_out, d_last, needs) -> list[Any]:
        d_x = out.new_empty(self._shape) if needs[0] else None
        if d_x is not None and not self._is_time_major:
            d_x = d_x.transpose(0, 1)
        others = zip(tensors[1:], needs[1:], strict=True)
        found: list[Any] = [d_x, *(t.new_empty(t.shape) if need else None for t, need in others)]
        at_x, at_kernel, at_recurrent, at_h0, *at_biases = (0 if t is None else t.data_ptr() for t in found)
        if self._are_one and needs[4]:
            at_biases.append(found[4][1].data_ptr())
        first, second = (*at_biases, 0, 0)[:2]
        self.bound.few.run(
            self._addresses(*tensors), (out.data_ptr(), gates.data_ptr()), d_out, d_last,
            at_x, at_kernel, first, at_recurrent, second, at_h0,
        )  # fmt: skip
        return found


class Recorded(torch.autograd.Function):
    """A call of a known kind, for autograd."""

    @staticmethod
    def forward(ctx, repeat: Repeat, *tensors):
        """Return out (T,B,U) and the last state (B,U)."""
        out, last, gates = repeat.scan(*tensors)
        ctx.set_materialize_grads(False)
        ctx.repeat = repeat
        ctx.save_for_backward(*tensors, out, gates)
        return out, last

    @staticmethod
    def backward(ctx, d_out, d_last):  # type: ignore[override]
        """Return the gradients of the tensors, as their owner has them."""
        *tensors, out, gates = ctx.saved_tensors
        return None, *ctx.repeat.gradients(tensors, out, gates, d_out, d_last, ctx.needs_input_grad[1:])
