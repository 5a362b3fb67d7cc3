"""The scan under torch.func: `vmap`, `grad`, `vjp`, `jacrev` and what they compose to, with at most one derivative.

torch.func takes a function apart by `torch.autograd.Function`; operators that have gradients do not compose with it.
Members that share their weights are mapped as rows of one scan, others as members of one call (`members.py`). A member
of a call that is mapped becomes as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..call.problem import Inputs, Variant
from .gradients import SAVE_NOTHING, Setting
from .members import Group, differentiable_gradients

# Where the batch is among a tensor's axes.
_BATCH_AXES = {"x": 1, "h0": 0, "mask": 1, "resets": 1, "drop": 1, "keep": 1}


class _What:
    """What is no tensor of a call, in one value that torch.func does not look into."""

    def __init__(self, group: Group, variant: Variant, setting: Setting, wanted: tuple[bool, ...] = ()):
        self.group, self.variant, self.setting, self.wanted = group, variant, setting, wanted

    def flat(self) -> list:
        """Return the operators' arguments between the tensors."""
        return [*map(list, self.group), *self.variant, *self.setting]

    def times(self, count: int) -> _What:
        """Return the same for so many in the place of each member."""
        backwards = tuple(b for b in self.group.backwards for _ in range(count))
        wanted = [w for member in _by_member(self.wanted, self.group) for _ in range(count) for w in member]
        return _What(self.group._replace(backwards=backwards), self.variant, self.setting, tuple(wanted))


def run_transformed(members: Sequence[Inputs], backwards: Sequence[bool], variant: Variant, setting: Setting):
    """Run members under torch.func; results of `members.scan_members`."""
    group = Group.of(members, backwards)
    return _Scan.apply(_What(group, variant, setting), *group.pack(members))


class _Scan(torch.autograd.Function):
    """`tritongru::scan_members`, of _What and the tensors."""

    @staticmethod
    def forward(what: _What, *tensors: Tensor):
        return torch.ops.tritongru.scan_members.default(list(tensors), *what.flat())

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.what, *tensors = inputs
        out, _, states, gates = output
        ctx.save_for_backward(out, states, gates, *tensors)

    @staticmethod
    def backward(ctx, d_out, d_last, _d_states, _d_gates):
        wanted = ctx.needs_input_grad[1:]
        if ctx.what.setting.save == SAVE_NOTHING:
            raise RuntimeError("a scan was called without saving what its gradient needs")
        what = _What(ctx.what.group, ctx.what.variant, ctx.what.setting, tuple(wanted))
        found = iter(_ScanBackward.apply(what, *ctx.saved_tensors[:3], d_out, d_last, *ctx.saved_tensors[3:]))
        return None, *(next(found) if want else None for want in wanted)

    @staticmethod
    def vmap(info, in_dims, what: _What, *tensors: Tensor):
        members, dims = what.group.unpack(tensors), what.group.unpack(in_dims[1:])
        shares_weights = all(d is None for m in dims for d in (m.w, m.bias_x, m.u, m.bias_h, m.scale))
        # Rows of different length may be packed together, and a member's part of what is saved of them is not its own.
        if shares_weights and (members[0].mask is None or what.setting.save == SAVE_NOTHING):
            return _map_rows(info.batch_size, what, members, dims)
        flat = [value for pair in zip(_by_member(tensors, what.group), _by_member(in_dims[1:], what.group), strict=True)
                for value in _repeat(*pair, info.batch_size)]  # fmt: skip
        results = _Scan.apply(what.times(info.batch_size), *flat)
        return tuple(value.unflatten(0, (-1, info.batch_size)) for value in results), (1,) * len(results)


class _ScanBackward(torch.autograd.Function):
    """`tritongru::scan_members_backward`, of _What, Saved, the gradients of `out` and the last state, and the tensors.

    Returns the gradients that are wanted, and no others.
    """

    @staticmethod
    def forward(what: _What, out, states, gates, d_out, d_last, *tensors: Tensor):
        found = torch.ops.tritongru.scan_members_backward.default(
            list(tensors), *what.flat(), out, states, gates, d_out, d_last, list(what.wanted)
        )
        return tuple(gradient for gradient, want in zip(found, what.wanted, strict=True) if want)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.what, _, _, _, d_out, d_last, *tensors = inputs
        ctx.save_for_backward(d_out, d_last, *tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        """Second derivatives: of the reference's first ones, which are a graph."""
        what, again = ctx.what, torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases, as in `gradients.differentiable_gradients`.
            d_out, d_last, *tensors = (t if t is None else t.view_as(t) for t in ctx.saved_tensors)
            firsts = differentiable_gradients(what.group, what.variant, tensors, list(what.wanted), d_out, d_last)
        given = [first for first, want in zip(firsts, what.wanted, strict=True) if want]
        pairs = [(f, c) for f, c in zip(given, cotangents, strict=True) if f is not None and f.requires_grad]
        needs = ctx.needs_input_grad[4:]
        leaves = [t for t, need in zip((d_out, d_last, *tensors), needs, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [f for f, _ in pairs], leaves, [c for _, c in pairs], create_graph=again, allow_unused=True
            )
        )
        return None, None, None, None, *(next(found) if need else None for need in needs)

    @staticmethod
    def vmap(info, in_dims, what: _What, *values):
        members = info.batch_size
        given = [_stack_members(value, dim, members) for value, dim in zip(values[:5], in_dims[1:6], strict=True)]
        parts = zip(_by_member(values[5:], what.group), _by_member(in_dims[6:], what.group), strict=True)
        flat = [value for pair in parts for value in _repeat(*pair, members)]
        found = iter(_ScanBackward.apply(what.times(members), *given, *flat))
        results = []
        for wanted in _by_member(what.wanted, what.group):
            each = [list(islice(found, sum(wanted))) for _ in range(members)]
            results += map(torch.stack, zip(*each, strict=True))
        return tuple(results), (0,) * len(results)


def _by_member(values: Sequence[Any], group: Group) -> list[Sequence[Any]]:
    """Return values for each tensor in one sequence for each member."""
    width = sum(group.present)
    return [values[start : start + width] for start in range(0, len(values), width)]


def _repeat(tensors: Sequence[Tensor], dims: Sequence[int | None], members: int) -> list[Tensor]:
    """Return the tensors of each that one member becomes."""
    pairs = list(zip(tensors, dims, strict=True))
    return [t if dim is None else t.select(dim, member) for member in range(members) for t, dim in pairs]


def _stack_members(value: Tensor | None, dim: int | None, members: int) -> Tensor | None:
    """Return a stacked value (M,..), of which `dim` counts the mapped, as (M * members,..)."""
    if value is None:
        return None
    if dim is None:
        value = value.unsqueeze(1).expand(-1, members, *value.shape[1:])
    else:
        value = value.movedim(dim, 1)
    return value.flatten(0, 1)


def _map_rows(members: int, what: _What, inputs: list[Inputs], dims: list[Inputs]):
    """Run the rows of all that are mapped as rows of one scan."""
    folded = [
        Inputs(*(_fold(name, t, dim, members) for name, t, dim in zip(a._fields, a, d, strict=True)))
        for a, d in zip(inputs, dims, strict=True)
    ]
    out, last, states, gates = _Scan.apply(what, *what.group.pack(folded))
    places = (out, 2), (last, 1), (states, 2), (gates, gates.dim() - 2)
    results = [_unfold(value, axis, members) for value, axis in places]
    return tuple(value for value, _ in results), tuple(axis for _, axis in results)


def _fold(name: str, value: Tensor | None, dim: int | None, members: int) -> Tensor | None:
    """Return the rows of all members one below the other; what is the same for all rows as it is."""
    axis = value.dim() - 2 - (dim is not None) if name == "fresh" and value is not None else _BATCH_AXES.get(name)
    if value is None or axis is None:
        return value
    if dim is None:
        value = value.unsqueeze(axis).expand(*value.shape[:axis], members, *value.shape[axis:])
    else:
        value = value.movedim(dim, axis)
    return value.flatten(axis, axis + 1)


def _unfold(value: Tensor, axis: int, members: int) -> tuple[Tensor, int | None]:
    """Return `value` with its members on an axis of their own, and that axis; what is empty as it is."""
    if value.dim() == 2:
        return value, None
    return value.view(*value.shape[:axis], members, value.shape[axis] // members, *value.shape[axis + 1 :]), axis
