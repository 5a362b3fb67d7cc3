"""The oracle: the GRU as a plain loop under autograd.

    z_t = g(x_t W_z + b_z + h R_z + c_z)
    r_t = g(x_t W_r + b_r + h R_r + c_r)
    n_t = f(x_t W_h + b_h + r_t * (h R_h + c_h))        reset_after
    n_t = f(x_t W_h + b_h + (r_t * h) R_h)              otherwise (one bias)
    h_t = z_t * h + (1 - z_t) * n_t

It can do everything `tritongru.gru` takes, in any floating dtype and on any device, and any number of derivatives.
It is the fallback and it judges every kernel, so it shares no code with them, nor with the canonical form they take.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activations


def gru_reference(
    x: Tensor,
    kernel: Tensor | None,
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
    zoneout: Tensor | None = None,
    gradient_clip: float | None = None,
    layer_norm=None,
) -> tuple[Tensor, Tensor]:
    """The GRU over a whole sequence, one step after another; arguments and results as `tritongru.gru`.

    Without a kernel they are those of `tritongru.scan`: `x` are the gates' inputs (B,T,3U), `bias` the recurrent one,
    or the pair of both.

    Returns:
        outputs (B,T,U), or (T,B,U) if `time_major`, in the order of processing; final state (B,U).

    Note:
        Arguments are taken as valid: `tritongru.gru` checks them. Several heads are one matrix with zeros between the
        blocks; an activation that mixes units (softmax) mixes those of all heads here.

    Source: tf.keras.layers.GRU (v2.9), generic path; torch.nn.GRU for `layout="torch"`.

    >>> h, last = gru_reference(torch.ones(1, 4, 2), torch.eye(2, 3), torch.ones(1, 3))
    >>> h.shape, bool((h[:, -1] == last).all())
    (torch.Size([1, 4, 1]), True)
    """
    if recurrent_kernel.dim() == 3:
        recurrent_kernel = _block_diagonal(recurrent_kernel, 0 if layout == "torch" else 1)
    f = activations.get(activation)
    g = activations.get(recurrent_activation)
    if kernel is None:
        x, u, b, c = _keras_gates(x, recurrent_kernel, bias, layout)  # type: ignore
        w = None
    else:
        w, u, b, c = _keras_layout(kernel, recurrent_kernel, bias, layout, reset_after)
    units = u.shape[0]

    def steps(value: Tensor) -> Tensor:
        return value if time_major else value.transpose(0, 1)

    xs = steps(x)
    T, B = xs.shape[:2]
    valid = None
    if mask is not None:
        valid = steps(mask.reshape(mask.shape[:2]) != 0)
    if lengths is not None:
        within = torch.arange(T, device=x.device)[:, None] < lengths.to(x.device)[None, :]
        valid = within if valid is None else valid & within
    if valid is not None:
        # The gradient of a step that is not taken is zero, and zero times a NaN of the padding would be NaN.
        xs = torch.where(valid[:, :, None], xs, 0.0)
    takes = None if zoneout is None else steps(zoneout.to(x.dtype).expand(*x.shape[:2], units))
    if takes is not None and valid is not None:
        takes = torch.where(valid[:, :, None], takes, 1.0)
    restart = None if resets is None else steps(resets != 0)

    h0 = x.new_zeros(B, units) if initial_state is None else initial_state.expand(B, units)
    if reset_state is None:
        fresh = torch.zeros_like(h0)
    elif isinstance(reset_state, str):
        fresh = h0
    else:
        fresh = reset_state
    fresh = steps(fresh) if fresh.dim() == 3 else fresh.expand(T, B, units)

    # One input mask serves the three gates, three serve one each; the same for the state.
    drop_x = [None if m is None else steps(m.expand(x.shape)) for m in _per_gate(input_dropout)]
    drop_h = [None if m is None else m for m in _per_gate(recurrent_dropout)]
    w_z, w_r, w_n = (None, None, None) if w is None else w.split(units, dim=1)
    u_z, u_r, u_n = u.split(units, dim=1)
    b_z, b_r, b_n = (0, 0, 0) if b is None else b.split(units)
    c_z, c_r, c_n = (0, 0, 0) if c is None else c.split(units)

    norm_x, norm_h = _norms(layer_norm, kernel is not None, layout, x.new_ones(3 * units))

    is_joint = layer_norm is not None and layer_norm.kind == "joint"

    def dropped(value: Tensor, drop: Tensor | None) -> Tensor:
        return value if drop is None else value * drop

    h, y = h0, torch.zeros_like(h0)
    # Taken apart at once: the gradient of one step picked at a time is as long as the sequence, for every step.
    inputs = xs.unbind(0)
    outputs = []
    for t in reversed(range(T)) if go_backwards else range(T):
        if restart is not None:
            h = torch.where(restart[t, :, None], fresh[t], h)
        if gradient_clip is not None:
            clipped = _ClippedGradient.apply(h, gradient_clip)
            h = clipped if valid is None else torch.where(valid[t, :, None], clipped, h)
        if w is None:
            gx_z, gx_r, gx_n = inputs[t].split(units, dim=1)
        else:
            x_z, x_r, x_n = (dropped(inputs[t], m if m is None else m[t]) for m in drop_x)
            gx_z, gx_r, gx_n = x_z @ w_z, x_r @ w_r, x_n @ w_n  # type: ignore
        if norm_x is not None:
            gx_z, gx_r, gx_n = norm_x(torch.cat((gx_z, gx_r, gx_n), dim=1)).split(units, dim=1)
        if not is_joint:
            gx_z, gx_r, gx_n = gx_z + b_z, gx_r + b_r, gx_n + b_n
        h_z, h_r, h_n = (dropped(h, m) for m in drop_h)

        if norm_h is not None:
            sums = torch.cat((h_z @ u_z, h_r @ u_r, h_n @ u_n), dim=1)
            if is_joint:
                sums = sums + torch.cat((gx_z, gx_r, gx_n), dim=1)
                gx_z, gx_r, gx_n = b_z, b_r, b_n
            gh_z, gh_r, gh_n = norm_h(sums).split(units, dim=1)
            z, r = g(gx_z + gh_z + c_z), g(gx_r + gh_r + c_r)
            n = f(gx_n + r * (gh_n + c_n))
        else:
            z = g(gx_z + h_z @ u_z + c_z)
            r = g(gx_r + h_r @ u_r + c_r)
            if reset_after:
                n = f(gx_n + r * (h_n @ u_n + c_n))
            else:
                n = f(gx_n + (r * h_n) @ u_n + c_n)
        if takes is not None:
            z = 1 - takes[t] * (1 - z)
        new = z * h + (1 - z) * n

        if valid is None:
            h = y = new
        else:
            keep = valid[t, :, None]
            h = torch.where(keep, new, h)
            y = torch.where(keep, new, torch.zeros_like(y) if zero_output_for_mask else y)
        outputs.append(y)

    stacked = torch.stack(outputs) if outputs else x.new_zeros(0, B, units)
    return (stacked if time_major else stacked.transpose(0, 1)), h


def _block_diagonal(heads: Tensor, axis: int) -> Tensor:
    """Return (U,3U), or (3U,U) where `axis` is 0, of heads (N,U/N,3U/N) or (N,3U/N,U/N): a block for each, per gate."""
    gates = heads.chunk(3, dim=axis + 1)
    return torch.cat([torch.block_diag(*gate) for gate in gates], dim=axis)


def _norms(layer_norm, has_kernel: bool, layout: str, ones: Tensor):
    """Return the norms of the input's sums and of the recurrent or joint ones, functions of (B,3U); None without."""
    if layer_norm is None:
        return None, None
    scale, both = layer_norm.scale, layer_norm.kind == "separate" and has_kernel
    if scale is None:
        scale = torch.stack((ones, ones)) if both else ones
    elif layout == "torch":
        r, z, n = scale.chunk(3, dim=-1)
        scale = torch.cat((z, r, n), dim=-1)

    def norm(weight: Tensor):
        return lambda value: F.layer_norm(value, weight.shape, weight, None, layer_norm.epsilon)

    return (norm(scale[0]), norm(scale[1])) if both else (None, norm(scale))


class _ClippedGradient(torch.autograd.Function):
    """The identity, whose gradient is clipped to [-bound, bound] elementwise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, bound: float) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.clamp(-ctx.bound, ctx.bound), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _):
        return tangent.view_as(tangent)


def _keras_gates(gates: Tensor, recurrent_kernel: Tensor, bias, layout: str):
    """Return (gates (..,3U), u (U,3U), input bias (3U,) | None, recurrent bias (3U,) | None) in gate order z, r, h."""
    b, c = bias if isinstance(bias, tuple) else (None, bias)
    if layout == "keras":
        return gates, recurrent_kernel, b, c

    def turned(value: Tensor | None):
        if value is None:
            return None
        r, z, n = value.chunk(3, dim=-1)
        return torch.cat((z, r, n), dim=-1)

    return turned(gates), turned(recurrent_kernel.t()), turned(b), turned(c)


def _keras_layout(kernel: Tensor, recurrent_kernel: Tensor, bias, layout: str, reset_after: bool):
    """Return (w (I,3U), u (U,3U), input bias (3U,) | None, recurrent bias (3U,) | None) in gate order z, r, h."""
    if layout == "torch":

        def turned(value: Tensor) -> Tensor:
            r, z, n = value.chunk(3, dim=0)
            return torch.cat((z, r, n), dim=0)

        b, c = (None, None) if bias is None else map(turned, bias)
        return turned(kernel).t(), turned(recurrent_kernel).t(), b, c
    if bias is None:
        return kernel, recurrent_kernel, None, None
    if reset_after:
        return kernel, recurrent_kernel, bias[0], bias[1]
    return kernel, recurrent_kernel, bias, None


def _per_gate(drop) -> tuple:
    if drop is None or isinstance(drop, Tensor):
        return drop, drop, drop
    drops = tuple(drop)
    return drops * 3 if len(drops) == 1 else drops
