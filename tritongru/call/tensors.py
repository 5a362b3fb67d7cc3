"""The tensors of a call: each refused by its name and value, or brought into plain form."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Arguments, LayerNorm, changed
from .errors import LAYOUTS, PRECISIONS, check_choice, check_norm_name
from .recording import is_traced

FLAGS = ("reset_after", "zero_output_for_mask", "go_backwards", "time_major", "recompute")


def check_tensors(a: Arguments) -> Arguments:
    """Return `a` in plain form; raises as `check`."""
    check_choice("layout", a.layout, LAYOUTS)
    check_choice("precision", a.precision, PRECISIONS)
    for name, value in zip(
        FLAGS, (a.reset_after, a.zero_output_for_mask, a.go_backwards, a.time_major, a.recompute), strict=True
    ):
        if isinstance(value, (str, bytes)):  # "no" would be true
            raise TypeError(f"`{name}` must be True or False, got {value!r}")
    x, own_name = a.x, name_of_input(a)
    _check_tensor(own_name, x, x)
    for name in ("kernel", "recurrent_kernel") if a.kernel is not None else ("recurrent_kernel",):
        _check_tensor(name, getattr(a, name), x)
    if x.dim() != 3:
        axes = ("(T,B,{})" if a.time_major else "(B,T,{})").format("3U" if a.kernel is None else "I")
        raise ValueError(f"`{own_name}` must have 3 axes {axes}, got {x.dim()} with shape {tuple(x.shape)}")
    # Not a's own properties, which torch 2.6 cannot compile.
    time, batch = x.shape[:2] if a.time_major else (x.shape[1], x.shape[0])
    units = _check_weights(a.kernel, a.recurrent_kernel, x.shape[2], a.layout)
    steps, axes = ((time, batch), "(T,B)") if a.time_major else ((batch, time), "(B,T)")
    if a.reset_state is not None and a.resets is None:
        raise ValueError("`reset_state` was given without `resets`: say at which steps it replaces the state")
    return changed(
        a,
        bias=_check_bias(a.bias, units, a, x),
        mask=_check_steps("mask", a.mask, steps, axes, x),
        resets=_check_steps("resets", a.resets, steps, axes, x),
        lengths=check_lengths(a.lengths, batch, time, x),
        initial_state=_check_initial_state(a.initial_state, batch, units, x),
        reset_state=_check_reset_state(a.reset_state, batch, steps, units, x),
        input_dropout=_check_drops("input_dropout", a.input_dropout, tuple(x.shape), x),
        recurrent_dropout=_check_drops("recurrent_dropout", a.recurrent_dropout, (batch, units), x),
        zoneout=_check_zoneout(a.zoneout, (*steps, units), x),
        gradient_clip=check_gradient_clip(a.gradient_clip),
        layer_norm=_check_layer_norm(a, units, x),
    )


def check_gradient_clip(value: object) -> float | None:
    """Return the bound of the state's gradient; TypeError unless None or a number, ValueError below zero or NaN."""
    if value is None:
        return None
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"`gradient_clip` must be None or a number, got {value!r}")
    if not (bound := float(value)) >= 0:  # type: ignore[arg-type]
        raise ValueError(f"`gradient_clip` must be None or a number that is not negative, got {value!r}")
    return bound


def name_of_input(a: Arguments) -> str:
    return "x" if a.kernel is not None else "gates"


def _check_tensor(name: str, value: object, like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else value.layout
        raise TypeError(f"`{name}` must be a dense torch.Tensor, got one that is {kind}")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {value.dtype}")
    if value.dtype != like.dtype:
        raise ValueError(f"`{name}` must have the dtype of the input, {like.dtype}, got {value.dtype}")
    _check_device(name, value, like)


def _check_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"`{name}` must be on the device of the input, {like.device}, got {value.device}")


def _check_weights(kernel: Tensor | None, recurrent: Tensor, features: int, layout: str) -> int:
    """Return the number of units, after checking both kernels against each other and the input."""
    for name, value in (("kernel", kernel), ("recurrent_kernel", recurrent)):
        if value is not None and value.dim() != 2:
            raise ValueError(f"`{name}` must have 2 axes, got {value.dim()} with shape {tuple(value.shape)}")
    units, gates = recurrent.shape if layout == "keras" else recurrent.shape[::-1]
    if units < 1 or gates != 3 * units:
        expected = "(U,3U)" if layout == "keras" else "(3U,U)"
        raise ValueError(f"`recurrent_kernel` must have shape {expected}, got {tuple(recurrent.shape)}")
    if kernel is None:
        if features != 3 * units:
            raise ValueError(f"`gates` must have a last axis of 3U = {3 * units} for {units} units, got {features}")
        return units
    expected = (features, 3 * units) if layout == "keras" else (3 * units, features)
    if tuple(kernel.shape) != expected:
        raise ValueError(
            f"`kernel` must have shape {expected} for {features} input features and {units} units "
            f'in layout="{layout}", got {tuple(kernel.shape)}'
        )
    return units


def _check_bias(bias, units: int, a: Arguments, like: Tensor):
    if bias is None:
        return None
    if a.layout == "torch" and a.kernel is not None:
        if not isinstance(bias, (tuple, list)) or len(bias) != 2:
            raise TypeError('`bias` must be the pair (b_ih, b_hh) in layout="torch"')
        for name, value in zip(("bias[0]", "bias[1]"), bias, strict=True):
            _check_tensor(name, value, like)
            if tuple(value.shape) != (3 * units,):
                raise ValueError(f"`{name}` must have shape {(3 * units,)}, got {tuple(value.shape)}")
        return tuple(bias)
    _check_tensor("bias", bias, like)
    expected = (2, 3 * units) if a.reset_after and a.kernel is not None else (3 * units,)
    if tuple(bias.shape) != expected:
        given = "gates given" if a.kernel is None else f"reset_after={a.reset_after}"
        raise ValueError(f"`bias` must have shape {expected} for {given}, got {tuple(bias.shape)}")
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


def check_lengths(lengths, batch: int, time: int, like: Tensor) -> Tensor | None:
    """Return `lengths` as int64 on the device of `like`; raises as `check`."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device=like.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"`lengths` must be a tensor or a list of integers, got {lengths!r}") from None
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"`lengths` must have shape (B,) = {(batch,)}, got {tuple(lengths.shape)}")
    # Values on an accelerator are not read back: that would stop the device at every call. Traced or mapped, they are
    # not there to be read.
    readable = not is_traced() and not torch._C._are_functorch_transforms_active()
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


def _check_drops(name: str, drops, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, ...] | None:
    """Return the dropout masks as a tuple of one or three tensors expanded to `shape`."""
    if drops is None:
        return None
    if not isinstance(drops, (Tensor, tuple, list)):
        raise TypeError(f"`{name}` must be a mask or three of them (z, r, h), got {drops!r}")
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


def _check_zoneout(keep, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """Return the zoneout mask in the dtype of `like`, expanded to `shape`."""
    if keep is None:
        return None
    if isinstance(keep, Tensor) and keep.dtype == torch.bool:
        keep = keep.to(like.dtype)
    _check_tensor("zoneout", keep, like)
    try:
        return keep.expand(shape)
    except RuntimeError:
        raise ValueError(f"`zoneout` must be broadcastable to {shape}, got {tuple(keep.shape)}") from None


def _check_layer_norm(a: Arguments, units: int, like: Tensor) -> LayerNorm | None:
    norm = a.layer_norm
    if norm is None:
        return None
    if isinstance(norm, str):
        norm = LayerNorm(norm)
    if not isinstance(norm, LayerNorm):
        raise TypeError(f"`layer_norm` must be None, a name or a tritongru.LayerNorm, got {type(norm).__name__}")
    check_norm_name(norm.kind, a.reset_after)
    if norm.scale is not None:
        _check_tensor("layer_norm.scale", norm.scale, like)
        expected = (2, 3 * units) if norm.kind == "separate" and a.kernel is not None else (3 * units,)
        if tuple(norm.scale.shape) != expected:
            raise ValueError(
                f"`layer_norm.scale` must have shape {expected} for {norm.kind!r}, got {tuple(norm.scale.shape)}"
            )
    if not (isinstance(norm.epsilon, (int, float)) and norm.epsilon > 0):
        raise ValueError(f"`layer_norm.epsilon` must be a positive number, got {norm.epsilon!r}")
    return changed(norm, epsilon=float(norm.epsilon))
