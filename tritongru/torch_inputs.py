"""What `torch.nn.GRU` accepts: inputs checked and laid time first, packed sequences as padded ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .call.padding import valid_steps
from .call.recording import is_recorded
from .call.tensors import check_lengths


def prepare(layer: nn.RNNBase, x: Tensor, hx, lengths, resets, time_major: bool = False):
    """Return checked x (T,B,I), hx (L*D,B,U) or None, lengths (B,) or None, resets (T,B) bool or None."""
    if not isinstance(x, Tensor):
        raise TypeError(f"GRU: input must be a torch.Tensor or a PackedSequence, got {type(x).__name__}")
    if x.is_nested:
        raise TypeError("GRU: input must not be a nested tensor: pass the padded one with `lengths`")
    if x.dim() not in (2, 3):
        raise ValueError(f"GRU: Expected input to be 2D or 3D, got {x.dim()}D instead")
    if x.shape[-1] != layer.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {layer.input_size}, got {x.shape[-1]}"
        )
    unbatched, batch_first = x.dim() == 2, layer.batch_first and not time_major
    if hx is not None and not isinstance(hx, Tensor):
        raise TypeError(f"GRU: hx must be a torch.Tensor, got {type(hx).__name__}")
    if hx is not None and hx.dim() != x.dim():
        kind = "unbatched 2-D" if unbatched else "batched 3-D"
        raise RuntimeError(f"For {kind} input, hx should also be {x.dim()}-D but got {hx.dim()}-D tensor")
    if unbatched:
        if lengths is not None:
            raise ValueError("`lengths` needs a batched 3-D input: cut one sequence to its length instead")
        x, hx = x.unsqueeze(1), None if hx is None else hx.unsqueeze(1)
    elif batch_first:
        x = x.transpose(0, 1)
    T, B, _ = x.shape
    _check_hx(layer, x, hx, B)
    if resets is not None:
        axes, steps = ("(T,)", (T,)) if unbatched else ("(B,T)", (B, T)) if batch_first else ("(T,B)", (T, B))
        if not isinstance(resets, Tensor) or tuple(resets.shape) != steps:
            got = tuple(resets.shape) if isinstance(resets, Tensor) else type(resets).__name__
            raise ValueError(f"`resets` must be a tensor of shape {axes} = {steps}, got {got}")
        resets = resets if resets.dtype == torch.bool else resets != 0
        resets = resets.unsqueeze(1) if unbatched else resets.t() if batch_first else resets
    return x, hx, check_lengths(lengths, B, T, x), resets


def _check_hx(layer: nn.RNNBase, x: Tensor, hx: Tensor | None, batch: int) -> None:
    weight = layer.weight_ih_l0
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if x.dtype != weight.dtype and not autocast:
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.device != weight.device:
        raise RuntimeError(
            f"Input and parameter tensors are not at the same device, found input tensor at {x.device} "
            f"and parameter tensor at {weight.device}"
        )
    if hx is None:
        return
    expected = (layer.num_layers * (2 if layer.bidirectional else 1), batch, layer.hidden_size)
    if tuple(hx.shape) != expected:
        raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}")
    if hx.device != x.device:
        raise RuntimeError(
            f"Input and hidden tensors are not at the same device, found input tensor at {x.device} "
            f"and hidden tensor at {hx.device}"
        )
    if hx.dtype != x.dtype and not autocast:
        raise ValueError(f"GRU: hx must have the dtype of the input, {x.dtype}, got {hx.dtype}")


def refuse_with_packed(lengths, resets) -> None:
    for name, value in (("lengths", lengths), ("resets", resets)):
        if value is not None:
            raise ValueError(f"`{name}` was given with a PackedSequence: pass the padded input with `lengths` instead")


def steps_of(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Return (T,B), true where a step of x (T,B,I) is not padding."""
    return None if lengths is None else valid_steps(lengths, x.shape[0])


def pad(packed: PackedSequence) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return x (T,B,I) with its rows in packed order, their lengths (B,) on the host, and the valid steps (T,B).

    Where nothing is padded the valid steps are None.
    """
    x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
    # batch_sizes lie on the host, so the comparison stops no device. A trace is to hold for other lengths too.
    full = not is_recorded() and bool(packed.batch_sizes[-1] == packed.batch_sizes[0])
    return x, lengths, None if full else steps_of(lengths.to(x.device), x)


def sort_states(hx: Tensor | None, packed: PackedSequence) -> Tensor | None:
    """Return hx (L*D,B,U) with its rows in packed order; one that does not fit as it is, for the checks to name."""
    order = packed.sorted_indices
    if (
        not isinstance(hx, Tensor)
        or order is None
        or hx.dim() != 3
        or hx.shape[1] != len(order)
        or hx.device != order.device
    ):
        return hx
    return hx.index_select(1, order)
