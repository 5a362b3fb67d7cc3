"""What the kernels are given of a norm (kernels/norms.py), and the gradient of its scale.

    forward    the scale s (3U,), and for "joint" what is added after the norm, every bias but c_n, (3U,)
    backward   s, the normalised sums A (T,B,3U), one over the standard deviation of each row's sums (T,B)

All gates stand in the weights' order. A is not kept for the backward pass: one product for a chunk of steps makes it
again, of the states as they were stored, which are what the forward kernel multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.continuation import Norm
from ..eager.layout import compute_dtype
from ..eager.normalized import Normalization, candidate_first, candidate_last

# Sums in flight while A is made again.
CHUNK = 1 << 24


def in_one_row(norm: Norm, bias_n: Tensor | None, variant: Variant) -> Tensor:
    """Return what the forward kernel is given: c_n (U,), the scale and, for "joint", the bias: (4U,) or (7U,)."""
    U = norm.scale.shape[0] // 3
    parts = [norm.scale.new_zeros(U) if bias_n is None else bias_n, norm.scale]
    if variant.layer_norm == "joint":
        parts.append(torch.zeros_like(norm.scale) if norm.bias is None else norm.bias)
    return torch.cat(parts)


def in_one_column(norm: Norm) -> Tensor:
    """Return what the backward kernel is given: the scale, then one over each row's spread, (3U + T * B,)."""
    assert norm.rstd is not None
    return torch.cat((norm.scale.to(norm.rstd.dtype), norm.rstd.flatten()))


def scale_gradient(norm: Norm, d_gx: Tensor, d_gh_n: Tensor) -> Tensor:
    """Return the gradient of the scale from those of the pre-activations, (T,B,3U), and of h R_n + c_n, (T,B,U)."""
    assert norm.sums is not None
    d = torch.cat((d_gx[..., : 2 * d_gh_n.shape[-1]], d_gh_n), dim=-1)
    return (d * norm.sums).sum((0, 1), dtype=compute_dtype(d.dtype)).to(d.dtype)


def rebuild_norm(a: Inputs, entering: Tensor, variant: Variant) -> Norm:
    """Return the norm for the way back; entering: (T,B,U) the state entering each step."""
    assert a.scale is not None
    (T, B, U), dtype = entering.shape, compute_dtype(entering.dtype)
    normalization = Normalization(a.u, a.drop, a.scale, variant, dtype)
    normal, spread = entering.new_empty(T, B, 3 * U), entering.new_empty(T, B, dtype=dtype)
    steps = max(1, CHUNK // max(1, 3 * B * U))
    for first in range(0, T, steps):
        chunk = slice(first, first + steps)
        sums = normalization.multiply(entering[chunk].flatten(0, 1).to(dtype))
        if normalization.joint:
            # Rounded as the forward kernel read it.
            gx = a.x[chunk] if a.w is None else a.x[chunk] @ a.w
            sums += candidate_first(gx.flatten(0, 1))
        sums, rstd = normalization.normalize(sums)
        normal[chunk] = candidate_last(sums).view_as(normal[chunk])
        spread[chunk] = rstd.view_as(spread[chunk])
    return Norm(a.scale, None, normal, spread)
