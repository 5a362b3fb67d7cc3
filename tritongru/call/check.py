"""From what a caller said to what a call is: its arguments checked, and everything that follows without their data."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor

from .. import activations
from ..activations import Activation
from .arguments import Arguments, LayerNorm
from .errors import LAYOUTS, PRECISIONS, check_choice, check_norm_name
from .problem import Shape, Variant
from .recording import is_recorded, is_traced


class Signature(NamedTuple):
    """All of a call but its data: what decisions depend on, and the key by which they are kept.

    Attributes:
        device, index: of all tensors. shape: None while tracing, when sizes are symbols.
        activations_known: whether `activation` and `recurrent_activation` are this package's.
        precision: of float32 products, resolved. tracing: by torch.compile, torch.export or torch.jit.trace.
        transformed: by torch.func or forward-mode differentiation; mapped: by torch.func.vmap alone, for which
            operators have a rule. wants_gradients: whether autograd will ask for any.
    """

    device: str
    dtype: torch.dtype
    variant: Variant
    units: int
    shape: Shape | None
    activations_known: tuple[bool, bool] = (True, True)
    has_mask: bool = False
    has_resets: bool = False
    has_kernel: bool = True
    has_bias: bool = True
    input_dropouts: int = 0
    recurrent_dropouts: int = 0
    has_zoneout: bool = False
    precision: str = "ieee"
    recompute: bool = False
    tracing: bool = False
    transformed: bool = False
    mapped: bool = False
    index: int = 0
    wants_gradients: bool = False


class Call(NamedTuple):
    """A checked call: its arguments in plain form, and its signature."""

    arguments: Arguments
    signature: Signature


def check(a: Arguments) -> Call:
    """Check the arguments of `tritongru.gru`, and resolve everything that does not depend on their data.

    Plain form: masks and resets are bool of rank 2, lengths an int64 tensor, dropouts None or tuples of 1 or 3 tensors,
    `initial_state` None or (B,U), `bias` None or a tensor (keras) or a pair (torch); floating tensors are in the dtype
    of autocast where it is on.

    Raises:
        TypeError: a tensor argument that is not a tensor, or has the wrong kind of dtype.
        ValueError: a wrong rank, size, device, dtype mix or choice; the message names the argument and its value.
    """
    if not isinstance(a.x, Tensor):
        raise TypeError(f"`{_name_of_input(a)}` must be a torch.Tensor, got {type(a.x).__name__}")
    a = check_tensors(in_autocast_dtype(a))
    f = activations.resolve(a.activation, "activation")
    g = activations.resolve(a.recurrent_activation, "recurrent_activation")
    x, tracing = a.x, is_traced()
    mapped = not tracing and is_mapped()
    units = a.recurrent_kernel.shape[0 if a.layout == "keras" else 1]
    variant = Variant(
        f.name, g.name, bool(a.reset_after), bool(a.zero_output_for_mask), bool(a.go_backwards), a.layout == "torch",
        a.gradient_clip, *((a.layer_norm.kind, a.layer_norm.epsilon) if isinstance(a.layer_norm, LayerNorm) else ()),
    )  # fmt: skip
    signature = Signature(
        device=x.device.type,
        dtype=x.dtype,
        variant=variant,
        units=units,
        shape=None if tracing else Shape(a.batch, a.time, x.shape[2], units),
        activations_known=(_is_known(f), _is_known(g)),
        has_mask=a.mask is not None or a.lengths is not None,
        has_resets=a.resets is not None,
        has_kernel=a.kernel is not None,
        has_bias=a.bias is not None,
        input_dropouts=len(a.input_dropout or ()),
        recurrent_dropouts=len(a.recurrent_dropout or ()),
        has_zoneout=a.zoneout is not None,
        precision=resolve_precision(a.precision),
        recompute=bool(a.recompute),
        tracing=tracing,
        transformed=is_transformed() and not mapped,
        mapped=mapped,
        index=x.device.index or 0,
        # A trace is recorded once for a world with gradients and one without.
        wants_gradients=is_recorded() or _wants_gradients(a),
    )
    return Call(a, signature)


def resolve_precision(precision: str) -> str:
    """Return the float32 product mode: `"auto"` follows `torch.get_float32_matmul_precision()`."""
    if precision != "auto":
        return precision
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def is_transformed() -> bool:
    """Return whether a torch.func transform or forward-mode differentiation is on."""
    # Without this, a dual number would pass through an operator and lose its tangent without a word.
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def is_mapped() -> bool:
    """Return whether torch.func.vmap is on, and no other transform than it."""
    if not torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    return all(i.key() == TransformType.Vmap for i in get_interpreter_stack() or ())


# Dynamo cannot trace these queries; it guards the settings by itself. This is torch.compiler.assume_constant_result
# without importing the compiler with the package.
for _query in (resolve_precision, is_transformed):
    _query._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_known(activation: Activation) -> bool:
    return activations.TABLE.get(activation.name) is activation


def _wants_gradients(a: Arguments) -> bool:
    if not torch.is_grad_enabled():
        return False
    values: list[Any] = [a.x, a.kernel, a.recurrent_kernel, a.initial_state, a.reset_state, a.zoneout]
    values.append(a.layer_norm.scale if isinstance(a.layer_norm, LayerNorm) else None)
    values += a.bias if isinstance(a.bias, tuple) else (a.bias,)
    return any(_requires_grad(value) for value in values if isinstance(value, Tensor))


def _requires_grad(value: Tensor) -> bool:
    if value.requires_grad or torch.compiler.is_compiling():
        return value.requires_grad
    # Inside of torch.func.vmap a tensor does not say what the one outside asks for.
    while is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
        if value.requires_grad:
            return True
    return False


def in_autocast_dtype(a: Arguments) -> Arguments:
    """Return `a` with every floating tensor in autocast's dtype, where autocast is on for the device of `x`.

    Source: torch.amp casts the inputs of matrix products and leaves float64 alone; so does this.
    """
    device = a.x.device.type
    # The meta device, on which only shapes are worked out, knows no autocast.
    if device == "meta" or not torch.is_autocast_enabled(device) or a.x.dtype == torch.float64:
        return a
    dtype = torch.get_autocast_dtype(device)

    def cast(value):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        if isinstance(value, LayerNorm):
            return value._replace(scale=cast(value.scale))
        if isinstance(value, (tuple, list)):
            return tuple(cast(item) for item in value)
        return value

    # A mask may be of floats, and is no value.
    return Arguments._make(map(cast, a))._replace(mask=a.mask, lengths=a.lengths)


def check_tensors(a: Arguments) -> Arguments:
    """Return `a` in plain form; raises as `check`."""
    check_choice("layout", a.layout, LAYOUTS)
    check_choice("precision", a.precision, PRECISIONS)
    x, own_name = a.x, _name_of_input(a)
    _check_tensor(own_name, x, x)
    for name in ("kernel", "recurrent_kernel") if a.kernel is not None else ("recurrent_kernel",):
        _check_tensor(name, getattr(a, name), x)
    if x.dim() != 3:
        axes = ("(T,B,{})" if a.time_major else "(B,T,{})").format("3U" if a.kernel is None else "I")
        raise ValueError(f"`{own_name}` must have 3 axes {axes}, got {x.dim()} with shape {tuple(x.shape)}")
    time, batch = a.time, a.batch
    units = _check_weights(a.kernel, a.recurrent_kernel, x.shape[2], a.layout)
    steps, axes = ((time, batch), "(T,B)") if a.time_major else ((batch, time), "(B,T)")
    if a.reset_state is not None and a.resets is None:
        raise ValueError("`reset_state` was given without `resets`: say at which steps it replaces the state")
    return a._replace(
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


def _name_of_input(a: Arguments) -> str:
    return "x" if a.kernel is not None else "gates"


def _check_tensor(name: str, value: object, like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
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
    lengths = torch.as_tensor(lengths)
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
    return norm._replace(epsilon=float(norm.epsilon))
