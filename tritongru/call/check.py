"""From what a caller said to what a call is: its arguments checked, and everything that follows without their data."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor

from .. import activations
from ..activations import Activation
from .arguments import Arguments, LayerNorm, changed
from .problem import Shape, Variant
from .recording import is_recorded, is_traced
from .tensors import check_tensors, name_of_input


class Signature(NamedTuple):
    """All of a call but its data: what decisions depend on, and the key by which they are kept.

    Attributes:
        device, index: of all tensors. shape: None while tracing, when sizes are symbols.
        activations_known: whether `activation` and `recurrent_activation` are this package's.
        wants_zoneout: whether the mask's own gradient is wanted.
        precision: of float32 products, resolved. tracing: by torch.compile, torch.export or torch.jit.trace.
        transformed: by torch.func or forward-mode differentiation, but for what is `composed`: by vmap and at most one
            derivative of torch.func, for which there are rules. wants_gradients: whether autograd will ask for any.
        members: calls that may run at once.
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
    wants_zoneout: bool = False
    precision: str = "ieee"
    recompute: bool = False
    tracing: bool = False
    transformed: bool = False
    composed: bool = False
    index: int = 0
    wants_gradients: bool = False
    members: int = 1


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
        raise TypeError(f"`{name_of_input(a)}` must be a torch.Tensor, got {type(a.x).__name__}")
    a = check_tensors(in_autocast_dtype(a))
    f = activations.resolve(a.activation, "activation")
    g = activations.resolve(a.recurrent_activation, "recurrent_activation")
    x, tracing = a.x, is_traced()
    composed = not tracing and is_composed()
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
        wants_zoneout=torch.is_grad_enabled() and a.zoneout is not None and _requires_grad(a.zoneout),
        precision=resolve_precision(a.precision),
        recompute=bool(a.recompute),
        tracing=tracing,
        transformed=is_transformed() and not composed,
        composed=composed,
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


def is_composed() -> bool:
    """Return whether torch.func is on with vmap and at most one derivative (`grad`, `vjp`, `jacrev`) alone."""
    if not torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    kinds = [interpreter.key() for interpreter in get_interpreter_stack() or ()]
    return set(kinds) <= {TransformType.Vmap, TransformType.Grad} and kinds.count(TransformType.Grad) <= 1


# Dynamo cannot trace these queries; it guards the settings by itself. This is torch.compiler.assume_constant_result
# without importing the compiler with the package.
for _query in (resolve_precision, is_transformed):
    _query._dynamo_marked_constant = True


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
            return changed(value, scale=cast(value.scale))
        if isinstance(value, (tuple, list)):
            return tuple(cast(item) for item in value)
        return value

    # A mask may be of floats, and is no value.
    return changed(Arguments(*map(cast, a)), mask=a.mask, lengths=a.lengths)
