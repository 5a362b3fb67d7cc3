"""The Triton kernels with what stands around them: the input's product before, the weights' gradients after.

    d gx, d gh_n   the reverse scan
    dx = d gx W'   dW = x' d gx    dR_g = (h * m_g)' d gh_g    db = the sums of d gx and d gh

Everything after the reverse scan is one product or sum for each input. On "auto" a scan that the kernels fail continues
in torch operations, with the same arguments and results. Members are scans of the same shape; those that the resident
kernels run in one launch are stacked for it, others run one after another.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import faults
from ...call.problem import Inputs, Variant
from ..eager import continuation
from ..eager.continuation import Norm
from ..eager.forward import rebuild, split_bias
from ..eager.layout import entering_states, product_like
from ..gradients import RECOMPUTE, Saved, Setting
from .norms import rebuild_norm, scale_gradient


def run_forward(
    a: Inputs, variant: Variant, save_gates: bool, setting: Setting
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project the input and run the recurrence over all steps; returns as `continuation.scan_forward`."""
    norm = None
    if variant.layer_norm == "joint":
        # The sums are normalised without their biases, which are added after it.
        bias, bias_n = split_bias(a.bias_x, a.bias_h, variant, a.x.dtype)
        gx, norm = a.x if a.w is None else a.x @ a.w, Norm(a.scale, bias)  # type: ignore[arg-type]
    else:
        gx, bias_n = project_input(a, variant)
        norm = None if a.scale is None else Norm(a.scale)
    arguments = gx, a.u, bias_n, a.h0, a.mask, a.resets, a.fresh, a.drop, variant, save_gates
    return _run("forward", arguments, a, variant, setting, norm)


def run_backward(
    a: Inputs,
    variant: Variant,
    setting: Setting,
    saved: Saved,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Inputs,
) -> Inputs:
    """Return the gradients of the inputs, None where not wanted: the reverse scan, then a product or sum for each."""
    entering, gates = _saved_of_steps(a, variant, setting, saved)
    norm = None if a.scale is None else rebuild_norm(a, entering, variant)
    arguments = d_out, d_last, gates, entering, a.u, a.mask, a.resets, a.drop, variant, bool(wanted.fresh)
    scanned = _run("backward", arguments, a, variant, setting, norm)
    return _gradients(a, variant, wanted, entering, gates, scanned, norm)


def run_members_forward(
    members: Sequence[Inputs], variants: Sequence[Variant], save_gates: bool, setting: Setting
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run scans that differ in their tensors and direction alone; the results of `run_forward`, stacked."""

    def one_by_one():
        runs = [run_forward(a, v, save_gates, setting) for a, v in zip(members, variants, strict=True)]
        return tuple(map(torch.stack, zip(*runs, strict=True)))

    def together(run):
        gx, bias_n = _project_members(members, variants[0])
        stacked = (_stacked(members, name) for name in ("u", "h0", "mask", "resets", "fresh", "drop"))
        u, h0, mask, resets, fresh, drop = stacked
        return run(
            gx, u, bias_n, h0, mask, resets, fresh, drop, variants[0], [v.reverse for v in variants], save_gates,
            setting.precision,
        )  # fmt: skip

    return _run_members("forward", together, one_by_one, members, variants, setting)


def run_members_backward(
    members: Sequence[Inputs],
    variants: Sequence[Variant],
    setting: Setting,
    saved: Saved,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Sequence[Inputs],
) -> list[Inputs]:
    """Return the gradients of each member's inputs; `saved`, `d_out` and `d_last` are stacked."""
    members_saved = [Saved(*values) for values in zip(*saved, strict=True)]

    def one_by_one():
        nothing = [None] * len(members)
        given = (nothing if d is None else d.unbind(0) for d in (d_out, d_last))
        each = zip(members, variants, members_saved, *given, wanted, strict=True)
        return [run_backward(a, v, setting, kept, *d, w) for a, v, kept, *d, w in each]

    def together(run):
        steps = [_saved_of_steps(a, v, setting, s) for a, v, s in zip(members, variants, members_saved, strict=True)]
        entering = saved.states if saved.states.dim() == 4 else torch.stack([entering for entering, _ in steps])
        gates = saved.gates if saved.gates.dim() == 5 else torch.stack([gates for _, gates in steps])
        u, mask, resets, drop = (_stacked(members, name) for name in ("u", "mask", "resets", "drop"))
        found = run(
            d_out, d_last, gates, entering, u, mask, resets, drop, variants[0], [v.reverse for v in variants],
            any(w.fresh for w in wanted), setting.precision,
        )  # fmt: skip
        each = [tuple(value[m] if value.dim() > 1 else value for value in found) for m in range(len(members))]
        rest = zip(members, variants, wanted, steps, each, strict=True)
        return [_gradients(a, v, w, *of_steps, scanned) for a, v, w, of_steps, scanned in rest]

    return _run_members("backward", together, one_by_one, members, variants, setting)


def _run_members(direction: str, together, one_by_one, members, variants, setting: Setting):
    """Return `together(run)`, `run` being the launch of all members, or `one_by_one()`."""
    # Imports triton, which need not be installed for the other backends.
    families = importlib.import_module("tritongru.backends.triton.families")
    return families.run_members(direction, together, one_by_one, members, variants[0], setting.precision)


def _stacked(members: Sequence[Inputs], name: str) -> Tensor | None:
    """Return a field of all members, one after another; steps that all of them share (T,B) as they are."""
    values = [getattr(a, name) for a in members]
    if values[0] is None or (name in ("mask", "resets") and _are_same(values)):
        return values[0]
    if name == "u" and values[0].stride(0) == 1:
        return torch.stack([value.t() for value in values]).transpose(1, 2)
    return torch.stack(values)


def _are_same(values: Sequence[Tensor]) -> bool:
    """Return whether tensors of one shape are one in memory."""
    return len({(value.data_ptr(), value.stride()) for value in values}) == 1


def _project_members(members: Sequence[Inputs], variant: Variant) -> tuple[Tensor, Tensor | None]:
    """Return gx (M,T,B,3U) and bias_n (M,U) or None, see `project_input`; of an input that all share by one product."""
    if members[0].w is None or not _are_same([a.x for a in members]):
        pairs = [project_input(a, variant) for a in members]
        gx, bias_n = zip(*pairs, strict=True)
        return torch.stack(gx), None if bias_n[0] is None else torch.stack(bias_n)
    x = members[0].x
    biases = [split_bias(a.bias_x, a.bias_h, variant, x.dtype) for a in members]
    w = torch.stack([a.w for a in members])  # type: ignore[misc]
    # Not `matmul`, which would fold the members into columns, and the scan wants each by itself.
    gx = torch.bmm(x.flatten(0, 1).expand(len(members), -1, -1), w).unflatten(1, x.shape[:2])
    if biases[0][0] is not None:
        gx.add_(torch.stack([bias for bias, _ in biases])[:, None, None])
    return gx, None if biases[0][1] is None else torch.stack([bias_n for _, bias_n in biases])


def _saved_of_steps(a: Inputs, variant: Variant, setting: Setting, saved: Saved) -> tuple[Tensor, Tensor]:
    """Return the states entering each step (T,B,U) and the gates of all steps."""
    out, states, gates = saved
    # Saved, or the outputs moved by one step.
    entering = states if states.dim() == 3 else entering_states(out, 0, out.shape[0], a.h0, None, None, variant)
    return entering, _rebuild_gates(a, entering, variant) if setting.save == RECOMPUTE else gates


def _gradients(
    a: Inputs, variant: Variant, wanted: Inputs, entering: Tensor, gates: Tensor, scanned: tuple[Tensor, ...],
    norm: Norm | None = None,
) -> Inputs:  # fmt: skip
    """Return the gradients of the inputs, None where not wanted, from what the reverse scan returns."""
    U = a.u.shape[0]
    d_gx, d_gh_n, d_h0, d_fresh = scanned
    d_x = d_w = d_bias_x = d_u = d_bias_h = d_drop = d_scale = None
    # A norm stands between the products and what is added after it.
    products = recurrent = d_gx, d_gh_n
    if norm is not None:
        d_gx, d_sums = d_gx
        recurrent = d_sums, d_sums[..., 2 * U :]
        products = recurrent if variant.layer_norm == "joint" else (d_gx, d_gh_n)
        d_scale = scale_gradient(norm, d_gx, d_gh_n) if wanted.scale else None
    if wanted.x:
        d_x = products[0] if a.w is None else products[0] @ a.w.t()
    if wanted.w:
        d_w = product_like(a.x.flatten(0, 1), products[0].flatten(0, 1), a.w)
    if wanted.bias_x:
        d_bias_x = d_gx.sum((0, 1))
    if wanted.u or wanted.drop:
        d_u, d_drop = _recurrent_gradients(a, wanted, entering, gates, *recurrent, variant)
    if wanted.bias_h:
        d_n = d_gh_n if variant.reset_after else d_gx[..., 2 * U :]
        d_bias_h = torch.cat((d_gx[..., : 2 * U].sum((0, 1)), d_n.sum((0, 1))))
    if wanted.fresh and a.fresh.dim() == 2:
        d_fresh = d_fresh.sum(0)
    return Inputs(
        d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0 if wanted.h0 else None, None, None, d_fresh if wanted.fresh else None,
        d_drop, scale=d_scale,
    )  # fmt: skip


def project_input(a: Inputs, variant: Variant) -> tuple[Tensor, Tensor | None]:
    """Return gx (T,B,3U) with every bias but the candidate's recurrent one, which is (U,) or None."""
    bias, bias_n = split_bias(a.bias_x, a.bias_h, variant, a.x.dtype)
    if a.w is None:
        return (a.x if bias is None else a.x + bias), bias_n
    gx = a.x @ a.w
    return (gx if bias is None else gx.add_(bias)), bias_n


def _run(
    direction: str, arguments: tuple, a: Inputs, variant: Variant, setting: Setting, norm: Norm | None
) -> tuple:  # fmt: skip
    """Run the scan of a direction on the kernels; on "auto" in torch operations where they fail."""

    def run_kernels():
        # Imports triton, which need not be installed for the other backends.
        families = importlib.import_module("tritongru.backends.triton.families")
        return families.run_scan(direction, arguments, a, variant, setting.precision, norm)

    if setting.backend == "triton":
        return run_kernels()
    scan = faults.Scan.of(a, variant, setting.precision)
    continue_eagerly = getattr(continuation, f"scan_{direction}")
    return faults.run_or_continue(
        scan, direction, run_kernels, lambda: continue_eagerly(*arguments, keep=a.keep, norm=norm)
    )


def _rebuild_gates(a: Inputs, entering: Tensor, variant: Variant) -> Tensor:
    """Return the gates (4 or 3,T,B,U) that `run_forward` did not save, by one product over all steps."""
    rows = rebuild(a, a.x.flatten(0, 1), entering.flatten(0, 1), variant)
    return continuation.unpack_gates(rows.unflatten(0, entering.shape[:2]), variant).to(a.x.dtype)


def _recurrent_gradients(a: Inputs, wanted: Inputs, entering, gates, d_gx, d_gh_n, v: Variant):
    """dR_g = (h * m_g)' dgh_g per gate, and the gradient of the dropout masks m_g, (G,B,U)."""
    U = a.u.shape[0]
    at_n = d_gh_n if v.reset_after else d_gx[..., 2 * U :]
    h_n = entering if v.reset_after else entering * gates[1]
    if a.drop is None:
        flat = entering.flatten(0, 1)
        zr = product_like(flat, d_gx[..., : 2 * U].flatten(0, 1), a.u)
        return torch.cat((zr, product_like(h_n.flatten(0, 1), at_n.flatten(0, 1), a.u)), dim=1), None
    masks = a.drop.expand(3, *a.drop.shape[1:])
    columns, d_masks = [], []
    sides = (entering, entering, h_n)
    for gate, (h, m) in enumerate(zip(sides, masks, strict=True)):
        d_gate = at_n if gate == 2 else d_gx[..., gate * U : (gate + 1) * U]
        columns.append(product_like((h * m).flatten(0, 1), d_gate.flatten(0, 1), a.u))
        if wanted.drop:
            d_masks.append((h * (d_gate @ a.u[:, gate * U : (gate + 1) * U].t())).sum(0))
    d_u = torch.cat(columns, dim=1) if wanted.u else None
    if not wanted.drop:
        return d_u, None
    d_drop = torch.stack(d_masks)
    return d_u, (d_drop if a.drop.shape[0] == 3 else d_drop.sum(0, keepdim=True))
