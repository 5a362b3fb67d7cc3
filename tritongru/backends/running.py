"""A call that was decided: past the operators where nobody watches, through them, or as torch.func takes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..call.arguments import changed
from ..call.problem import Inputs, Problem, Variant
from .gradients import RECOMPUTE, SAVE_GATES, SAVE_NOTHING, Setting
from .members import Group, run_members_directly
from .operators import WHOLE, Unwatched, forward, is_watched
from .transforms import run_transformed


def run_scan(problem: Problem, setting: Setting) -> tuple[Tensor, Tensor]:
    """Run a problem.

    Returns:
        outputs (T,B,U), at the time index of the input; last state (B,U).
    """
    inputs, variant = problem
    if _is_past_operators(inputs, setting):
        return forward(inputs, variant, setting)[:2]
    if setting.backend in WHOLE and inputs.x.is_cpu and not is_watched(inputs):
        return Unwatched.apply(*inputs, *variant, *setting)[:2]
    if torch._C._are_functorch_transforms_active():
        out, last, *_ = run_transformed([inputs], [variant.reverse], variant, setting)
        return out[0], last[0]
    return torch.ops.tritongru.scan.default(*inputs, *variant, *setting)[:2]


def run_members(problems: Sequence[Problem], setting: Setting) -> tuple[Tensor, Tensor]:
    """Run problems that are alike but for their directions (`members.are_alike`).

    Returns:
        outputs (M,T,B,U), last states (M,B,U).
    """
    members, variants = zip(*problems, strict=True)
    if _is_past_operators([t for a in members for t in a], setting):
        return run_members_directly(members, variants, setting)[:2]
    group, variant = Group.of(members, [v.reverse for v in variants]), changed(variants[0], reverse=False)
    if torch._C._are_functorch_transforms_active():
        return run_transformed(members, group.backwards, variant, setting)[:2]
    tensors = group.pack(members)
    return torch.ops.tritongru.scan_members.default(tensors, *map(list, group), *variant, *setting)[:2]


def run_plain(
    members: Sequence[Inputs], variants: Sequence[Variant], precision: str, backend: str, at_once: bool
) -> list[tuple[Tensor, Tensor]]:
    """Run scans that nothing watches (`is_watched`), without gradients, on one of `WHOLE`.

    Args:
        at_once: as members of one call, in place of one after another.

    Returns:
        of each, outputs (T,B,U), at the time index of the input, and last state (B,U).
    """
    setting = Setting(precision, SAVE_NOTHING, backend)
    if at_once:
        out, last, *_ = run_members_directly(members, variants, setting)
        return list(zip(out.unbind(0), last.unbind(0), strict=True))
    return [forward(a, v, setting)[:2] for a, v in zip(members, variants, strict=True)]


def setting_of(precision: str, recompute: bool, wants_gradients: bool, backend: str) -> Setting:
    """Return how a scan runs.

    Args:
        precision: of float32 products, resolved. recompute: keep no gates for the backward pass. backend: a name, or
            "auto": triton, and eager where the kernels fail.
    """
    return Setting(precision, SAVE_NOTHING if not wants_gradients else RECOMPUTE if recompute else SAVE_GATES, backend)


def _is_past_operators(tensors: Sequence[Tensor | None], setting: Setting) -> bool:
    # An operator is for tracing, modes and transforms; it costs as much as several steps.
    return setting.save == SAVE_NOTHING and setting.backend in WHOLE and not is_watched(tensors)
