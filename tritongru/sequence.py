"""From what a caller passes to the one canonical form every fast backend takes, checked on the way.

The canonical form is time-major: `x (T,B,I)`, `mask (T,B)`, one state per row, weights as `(I,3U)` and `(U,3U)` views.
Torch's weights are transposed views with their gates in the order r, z, n, so neither layout is copied.
Nothing is reversed here: `variant.reverse` tells the scan to walk from the last step to the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import activations, spec
from .padding import is_exporting_to_onnx, valid_steps
from .precision import resolve_precision
from .spec import Shape, Variant


@dataclass(frozen=True)
class Problem:
    """One GRU call in canonical form.

    Attributes:
        x: (T,B,I), or (T,B,3U) already projected where `w` is None.
        w, bias_x: input kernel (I,3U) and bias (3U,), or None.
        u, bias_h: recurrent kernel (U,3U) and recurrent bias (3U,), or None.
        h0: (B,U). mask, resets: (T,B) bool or None. fresh: state after a reset, (B,U), (T,B,U) or None for zeros.
        drop: recurrent dropout, scaled, (1,B,U) for all gates or (3,B,U) in the order of the weights' gates, or None.
        variant, shape, precision, recompute: see `spec`.
    """

    x: Tensor
    w: Tensor | None
    bias_x: Tensor | None
    u: Tensor
    bias_h: Tensor | None
    h0: Tensor
    mask: Tensor | None
    resets: Tensor | None
    fresh: Tensor | None
    drop: Tensor | None
    variant: Variant
    shape: Shape
    precision: str = "ieee"
    recompute: bool = False


def autocast_arguments(arguments: dict) -> dict:
    """Return `arguments` with every floating tensor in autocast's dtype, where autocast is on for `x`'s device.

    Source: torch.amp casts the inputs of matrix products and leaves float64 alone; so does this.
    """
    device = arguments["x"].device.type
    # The meta device, on which only shapes are worked out, knows no autocast.
    if device == "meta" or not torch.is_autocast_enabled(device) or arguments["x"].dtype == torch.float64:
        return arguments
    dtype = torch.get_autocast_dtype(device)

    def cast(value):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        if isinstance(value, (tuple, list)):
            return tuple(cast(item) for item in value)
        return value

    return {name: value if name in ("mask", "lengths") else cast(value) for name, value in arguments.items()}


def check_arguments(a: dict) -> dict:
    """Check the arguments of `tritongru.gru` and return them in plain form.

    Plain form: masks and resets are bool of rank 2, lengths an int64 tensor, dropouts tuples of 0, 1 or 3 tensors,
    `initial_state` None or (B,U), `bias` None or a tensor (keras) or a pair (torch).

    Raises:
        TypeError: a tensor argument that is not a tensor, or has the wrong kind of dtype.
        ValueError: a wrong rank, size, device, dtype mix or choice; the message names the argument and its value.
    """
    spec.check_choice("layout", a["layout"], spec.LAYOUTS)
    spec.check_choice("precision", a["precision"], spec.PRECISIONS)
    x, kernel, recurrent = a["x"], a["kernel"], a["recurrent_kernel"]
    for name in ("x", "kernel", "recurrent_kernel"):
        _check_tensor(name, a[name], x)
    if x.dim() != 3:
        axes = "(T,B,I)" if a["time_major"] else "(B,T,I)"
        raise ValueError(f"`x` must have 3 axes {axes}, got {x.dim()} with shape {tuple(x.shape)}")
    time, batch = (x.shape[0], x.shape[1]) if a["time_major"] else (x.shape[1], x.shape[0])
    units = _check_weights(kernel, recurrent, x.shape[2], a["layout"])
    steps = (time, batch) if a["time_major"] else (batch, time)
    axes = "(T,B)" if a["time_major"] else "(B,T)"

    checked = dict(a)
    checked["bias"] = _check_bias(a["bias"], units, a["layout"], a["reset_after"], x)
    checked["mask"] = _check_steps("mask", a["mask"], steps, axes, x)
    checked["resets"] = _check_steps("resets", a["resets"], steps, axes, x)
    checked["lengths"] = _check_lengths(a["lengths"], batch, time, x)
    checked["initial_state"] = _check_initial_state(a["initial_state"], batch, units, x)
    checked["reset_state"] = _check_reset_state(a["reset_state"], batch, steps, units, x)
    if a["reset_state"] is not None and a["resets"] is None:
        raise ValueError("`reset_state` was given without `resets`: say at which steps it replaces the state")
    checked["input_dropout"] = _check_drops("input_dropout", a["input_dropout"], tuple(x.shape), x)
    checked["recurrent_dropout"] = _check_drops("recurrent_dropout", a["recurrent_dropout"], (batch, units), x)
    return checked


def canonicalize(a: dict) -> Problem:
    """Return the canonical form of checked arguments (`check_arguments`)."""
    time_major, layout = a["time_major"], a["layout"]

    def by_time(value: Tensor) -> Tensor:
        return value if time_major else value.transpose(0, 1)

    x = by_time(a["x"])
    w, u, bias_x, bias_h = a["kernel"], a["recurrent_kernel"], a["bias"], None
    if layout == "torch":
        w, u = w.t(), u.t()
        bias_x, bias_h = (None, None) if bias_x is None else bias_x
    elif bias_x is not None and a["reset_after"]:
        bias_x, bias_h = bias_x.unbind(0)
    units = u.shape[0]
    torch_order = layout == "torch"

    mask = None if a["mask"] is None else by_time(a["mask"])
    if a["lengths"] is not None:
        within = valid_steps(a["lengths"], x.shape[0])
        mask = within if mask is None else mask & within
    if mask is not None and not is_exporting_to_onnx():
        # What stands in the padding must not matter, not even a NaN: in the weights' gradient it meets a zero. An ONNX
        # file has no gradients. (A zero on the device: a host waits while its own is copied.)
        x = torch.where(mask[:, :, None], x, x.new_zeros(()))

    drops = [by_time(m.expand(a["x"].shape)) for m in a["input_dropout"]]
    if len(drops) == 1:
        x = x * drops[0]
    elif drops:
        if torch_order:
            drops = [drops[1], drops[0], drops[2]]
        x = torch.cat([(x * m) @ w_g for m, w_g in zip(drops, w.split(units, 1), strict=True)], dim=-1)
        w = None

    drop = None
    if a["recurrent_dropout"]:
        masks = a["recurrent_dropout"]
        if torch_order and len(masks) == 3:
            masks = (masks[1], masks[0], masks[2])
        drop = torch.stack(masks)

    h0 = a["initial_state"]
    h0 = x.new_zeros(x.shape[1], units) if h0 is None else h0
    resets, fresh = a["resets"], a["reset_state"]
    if resets is not None:
        resets = by_time(resets)
        if isinstance(fresh, str):
            fresh = h0
        elif fresh is not None and fresh.dim() == 3:
            fresh = by_time(fresh)

    variant = Variant(
        activation=activations.resolve(a["activation"], "activation").name,
        recurrent_activation=activations.resolve(a["recurrent_activation"], "recurrent_activation").name,
        reset_after=bool(a["reset_after"]),
        zero_output_for_mask=bool(a["zero_output_for_mask"]),
        reverse=bool(a["go_backwards"]),
        reset_gate_first=torch_order,
    )
    shape = Shape(batch=x.shape[1], time=x.shape[0], input=a["x"].shape[2], units=units)
    return Problem(
        x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, variant, shape,
        precision=resolve_precision(a["precision"]), recompute=bool(a["recompute"]),
    )  # fmt: skip


def _check_tensor(name: str, value: object, like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {value.dtype}")
    if value.dtype != like.dtype:
        raise ValueError(f"`{name}` must have the dtype of `x`, {like.dtype}, got {value.dtype}")
    _check_device(name, value, like)


def _check_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"`{name}` must be on the device of `x`, {like.device}, got {value.device}")


def _check_weights(kernel: Tensor, recurrent: Tensor, features: int, layout: str) -> int:
    """Return the number of units, after checking both kernels against each other and the input."""
    for name, value in (("kernel", kernel), ("recurrent_kernel", recurrent)):
        if value.dim() != 2:
            raise ValueError(f"`{name}` must have 2 axes, got {value.dim()} with shape {tuple(value.shape)}")
    units, gates = recurrent.shape if layout == "keras" else recurrent.shape[::-1]
    if units < 1 or gates != 3 * units:
        expected = "(U,3U)" if layout == "keras" else "(3U,U)"
        raise ValueError(f"`recurrent_kernel` must have shape {expected}, got {tuple(recurrent.shape)}")
    expected = (features, 3 * units) if layout == "keras" else (3 * units, features)
    if tuple(kernel.shape) != expected:
        raise ValueError(
            f"`kernel` must have shape {expected} for {features} input features and {units} units "
            f'in layout="{layout}", got {tuple(kernel.shape)}'
        )
    return units


def _check_bias(bias, units: int, layout: str, reset_after: bool, like: Tensor):
    if bias is None:
        return None
    if layout == "torch":
        if not isinstance(bias, (tuple, list)) or len(bias) != 2:
            raise TypeError('`bias` must be the pair (b_ih, b_hh) in layout="torch"')
        for name, value in zip(("bias[0]", "bias[1]"), bias, strict=True):
            _check_tensor(name, value, like)
            if tuple(value.shape) != (3 * units,):
                raise ValueError(f"`{name}` must have shape {(3 * units,)}, got {tuple(value.shape)}")
        return tuple(bias)
    _check_tensor("bias", bias, like)
    expected = (2, 3 * units) if reset_after else (3 * units,)
    if tuple(bias.shape) != expected:
        raise ValueError(f"`bias` must have shape {expected} for reset_after={reset_after}, got {tuple(bias.shape)}")
    return bias


def _check_steps(name: str, value, steps: tuple[int, int], axes: str, like: Tensor) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    if value.dim() == 3 and value.shape[2] == 1:
        value = value.squeeze(2)
    if value.dim() != 2 or tuple(value.shape) != steps:
        raise ValueError(f"`{name}` must have shape {axes} = {steps}, got {tuple(value.shape)}")
    _check_device(name, value, like)
    return value if value.dtype == torch.bool else value != 0


def _check_lengths(lengths, batch: int, time: int, like: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths)
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"`lengths` must have shape (B,) = {(batch,)}, got {tuple(lengths.shape)}")
    # Values on an accelerator are not read back: that would stop the device at every call. Traced or mapped, they are
    # not there to be read.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    readable = not traced and not torch._C._are_functorch_transforms_active()
    if lengths.device.type == "cpu" and readable and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > time:
            raise ValueError(f"`lengths` must lie in 0..{time}, got values from {low} to {high}")
    return lengths.to(like.device, torch.int64)


def _check_initial_state(state, batch: int, units: int, like: Tensor) -> Tensor | None:
    if state is None:
        return None
    _check_tensor("initial_state", state, like)
    # Symbolic sizes are compared one by one, the batch first: a set of tuples would hash them and so fix their values.
    fits = state.dim() in (1, 2) and state.shape[-1] == units
    if not fits or (state.dim() == 2 and state.shape[0] != batch and state.shape[0] != 1):
        raise ValueError(
            f"`initial_state` must have shape (B,U) = {(batch, units)}, (1,U) or (U,), got {tuple(state.shape)}"
        )
    return state.expand(batch, units)


def _check_reset_state(state, batch: int, steps: tuple[int, int], units: int, like: Tensor):
    if state is None or (isinstance(state, str) and state == "initial"):
        return state
    if isinstance(state, str):
        raise ValueError(f'`reset_state` must be None, "initial" or a tensor, got {state!r}')
    _check_tensor("reset_state", state, like)
    if tuple(state.shape) != ((batch, units) if state.dim() == 2 else (*steps, units)):
        raise ValueError(
            f"`reset_state` must have shape (B,U) = {(batch, units)} or {(*steps, units)}, got {tuple(state.shape)}"
        )
    return state


def _check_drops(name: str, drops, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, ...]:
    """Return the dropout masks as a tuple of none, one or three tensors expanded to `shape`."""
    if drops is None:
        return ()
    drops = (drops,) if isinstance(drops, Tensor) else tuple(drops)
    if len(drops) not in (1, 3):
        raise ValueError(f"`{name}` must be one mask or three (z, r, h), got {len(drops)}")
    expanded = []
    for mask in drops:
        _check_tensor(name, mask, like)
        try:
            expanded.append(mask.expand(shape))
        except RuntimeError:
            raise ValueError(f"`{name}` must be broadcastable to {shape}, got {tuple(mask.shape)}") from None
    return tuple(expanded)
