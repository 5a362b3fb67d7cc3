"""Members: scans that differ in their tensors and direction alone, as two `torch.library` operators over all of them.

Two directions of a layer, several heads, an ensemble: on the resident Triton kernels they are one launch, in numba they
share the threads, in eager small ones are one scan, elsewhere they run one after another. What a member gives is what
`tritongru::scan` gives; results are stacked, the member first.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call.problem import Inputs, Variant
from . import gradients, mapping
from .eager import members as eager
from .gradients import SAVE_GATES, SAVE_NOTHING, Saved, Setting
from .operators import LIBRARY, SAVED, SETTING, VARIANT, WHOLE, define, forward, laid_out_as, result_shapes, split
from .precision import product_precision
from .triton import run as triton

# In triton's own words: of these two settings the kernels run.
ON_KERNELS = ("triton", "auto")


class Group(NamedTuple):
    """What the members of one call have in common.

    Attributes:
        present: which fields of Inputs are there, in every member. backwards: of each member, the direction, in place
            of that in the variant.
    """

    present: tuple[bool, ...]
    backwards: tuple[bool, ...]

    @classmethod
    def of(cls, members: Sequence[Inputs], backwards: Sequence[bool]) -> Group:
        """Return the group of members whose inputs these are."""
        return cls(tuple(t is not None for t in members[0]), tuple(backwards))

    def unpack(self, values: Sequence[Any]) -> list[Inputs]:
        """Return a value for each tensor of the members as one Inputs for each, None where there is no tensor."""
        rest = iter(values)
        return [Inputs(*(next(rest) if there else None for there in self.present)) for _ in self.backwards]

    def pack(self, members: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the values of every member for each tensor that is there; the inverse of `unpack`."""
        return [value for member in members for value, there in zip(member, self.present, strict=True) if there]

    def variants(self, variant: Variant) -> list[Variant]:
        """Return the variant of each member."""
        return [variant._replace(reverse=backwards) for backwards in self.backwards]


def are_alike(members: Sequence[Inputs]) -> bool:
    """Return whether inputs have the same fields, shapes and dtypes."""
    kinds = {tuple(None if t is None else (tuple(t.shape), t.dtype) for t in a) for a in members}
    return len(kinds) == 1


def run_members_directly(
    members: Sequence[Inputs], variants: Sequence[Variant], setting: Setting
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all members; results of `tritongru::scan`, stacked."""
    save_gates = setting.save == SAVE_GATES
    with product_precision(members[0].x, setting.precision):
        if setting.backend in ON_KERNELS:
            return triton.run_members_forward(members, variants, save_gates, setting)
        if setting.backend == "numba":
            return _numba().run_members_forward(members, variants, save_gates)
        if setting.backend == "eager" and eager.are_one_scan(members, variants):
            return eager.run_members_forward(members, variants, save_gates)
    runs = [forward(a, v, setting) for a, v in zip(members, variants, strict=True)]
    return tuple(map(torch.stack, zip(*runs, strict=True)))  # type: ignore[return-value]


def _numba():
    # Imports numba, which need not be installed for the other backends.
    return importlib.import_module("tritongru.backends.numba.members")


def _split(arguments: Sequence[Any], *kinds: type) -> tuple[list[Inputs], Group, list[Any]]:
    """Return the members, their group, and the rest as `split`."""
    tensors, present, backwards, *rest = arguments
    group = Group(tuple(present), tuple(backwards))
    return group.unpack(tensors), group, split(rest, *kinds)


def scan_members(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all members; arguments: their tensors, Group, Variant, Setting.

    Returns:
        out (M,T,B,U), last state (M,B,U), states and gates (M,..) or, where nothing is saved, (M,0); see
        `operators.scan`.
    """
    members, group, (variant, setting, _) = _split(arguments, Variant, Setting)
    results = run_members_directly(members, group.variants(variant), setting)
    pairs = zip(results, _shapes(members, variant, setting), strict=True)
    return tuple(value if value.numel() else value.new_empty(shape) for value, shape in pairs)  # type: ignore[return-value]


def _shapes(members: Sequence[Inputs], variant: Variant, setting: Setting) -> list[tuple[int, ...]]:
    return [(len(members), *shape) for shape in result_shapes(members[0], variant, setting)]


def _scan_members_shapes(*arguments) -> tuple[Tensor, ...]:
    members, _, (variant, setting, _) = _split(arguments, Variant, Setting)
    return tuple(members[0].x.new_empty(shape) for shape in _shapes(members, variant, setting))


def scan_members_backward(*arguments) -> list[Tensor]:
    """Return the gradient of each tensor of `scan_members`, empty where it is not wanted.

    Arguments: those of `scan_members`, Saved, the gradients of `out` and of the last state (or None), and which
    gradients are wanted, one bool for each tensor.
    """
    members, group, (variant, setting, saved, rest) = _split(arguments, Variant, Setting, Saved)
    d_out, d_last, wanted = rest
    found = _run_backward(members, group.variants(variant), setting, saved, d_out, d_last, group.unpack(wanted))
    pairs = zip(group.pack(found), group.pack(members), strict=True)
    return [t.new_empty(0) if d is None else laid_out_as(d, t) for d, t in pairs]


def _run_backward(members, variants, setting: Setting, saved: Saved, d_out, d_last, wanted) -> list[Inputs]:
    with product_precision(members[0].x, setting.precision):
        if setting.backend in ON_KERNELS:
            return triton.run_members_backward(members, variants, setting, saved, d_out, d_last, wanted)
        if setting.backend == "eager" and eager.are_one_scan(members, variants):
            return eager.run_members_backward(members, variants, saved, d_out, d_last, wanted)
        count = len(members)
        each = [Saved(*values) for values in zip(*saved, strict=True)]
        d_outs, d_lasts = of_members(d_out, count), of_members(d_last, count)
        if setting.backend == "numba":
            return _numba().run_members_backward(members, variants, each, d_outs, d_lasts, wanted)
        run = WHOLE[setting.backend].run_backward
        rest = zip(members, variants, each, d_outs, d_lasts, wanted, strict=True)
        return [run(a, v, setting, kept, *d, w) for a, v, kept, *d, w in rest]


def of_members(value: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Return the part of each member."""
    return [None] * count if value is None else value.unbind(0)


def _scan_members_backward_shapes(*arguments) -> list[Tensor]:
    tensors, wanted = arguments[0], arguments[-1]
    return [torch.empty_like(t) if want else t.new_empty(0) for t, want in zip(tensors, wanted, strict=True)]


_MEMBERS = "Tensor[] tensors, bool[] present, bool[] backwards"
define(
    "scan_members",
    f"{_MEMBERS}, {VARIANT}, {SETTING}",
    "(Tensor, Tensor, Tensor, Tensor)",
    scan_members,
    _scan_members_shapes,
)
define(
    "scan_members_backward",
    f"{_MEMBERS}, {VARIANT}, {SETTING}, {SAVED}, Tensor? d_out, Tensor? d_last, bool[] wanted",
    "Tensor[]",
    scan_members_backward,
    _scan_members_backward_shapes,
)


def _keep(ctx, inputs, output) -> None:
    # As for one scan, `operators._keep`.
    ctx.set_materialize_grads(False)
    tensors, present, backwards, *rest = inputs
    ctx.group = Group(tuple(present), tuple(backwards))
    ctx.variant, ctx.setting, _ = split(rest, Variant, Setting)
    out, _, states, gates = output
    ctx.save_for_backward(*tensors, out, states, gates)


def _differentiate(ctx, d_out, d_last, _d_states, _d_gates):
    if ctx.setting.save == SAVE_NOTHING:
        raise RuntimeError("tritongru::scan_members was called without saving what its gradient needs")
    *tensors, out, states, gates = ctx.saved_tensors
    wanted = list(map(bool, ctx.needs_input_grad[0]))
    if torch.is_grad_enabled():
        result = differentiable_gradients(ctx.group, ctx.variant, tensors, wanted, d_out, d_last)
    else:
        found = torch.ops.tritongru.scan_members_backward.default(
            tensors, *map(list, ctx.group), *ctx.variant, *ctx.setting, out, states, gates, d_out, d_last, wanted
        )
        result = [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
    return result, *_NO_GRADIENTS


def differentiable_gradients(group: Group, variant: Variant, tensors, wanted, d_out, d_last) -> list[Tensor | None]:
    """Return the gradients of the members' tensors as `gradients.differentiable_gradients`."""
    count = len(group.backwards)
    rest = zip(
        group.variants(variant), group.unpack(tensors), group.unpack(wanted), of_members(d_out, count),
        of_members(d_last, count), strict=True,
    )  # fmt: skip
    nothing = [None] * len(Inputs._fields)
    found = [gradients.differentiable_gradients(v, a, w, *d) if any(w) else nothing for v, a, w, *d in rest]
    return group.pack(found)


_NO_GRADIENTS = (None,) * len(Group._fields + Variant._fields + Setting._fields)

torch.library.register_autograd("tritongru::scan_members", _differentiate, setup_context=_keep, lib=LIBRARY)
for _operator in (torch.ops.tritongru.scan_members.default, torch.ops.tritongru.scan_members_backward.default):
    mapping.register_loop(_operator, LIBRARY)
