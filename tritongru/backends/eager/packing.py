"""Rows of different length, packed: the steps that a mask leaves out are neither stored nor computed.

Where every row is valid from some step on, or up to some step, the rows are put in order of falling length. The valid
rows of each step are then the first ones, and packed steps stand one below the other:

    step 0:  a b c d        rows a b c d, of lengths 4, 2, 2 and 1, become the packed rows
    step 1:  a b c          a0 b0 c0 d0 a1 b1 c1 a2 a3
    step 2:  a
    step 3:  a

The scan goes over them as over any steps, with fewer rows in some. `nn.utils.rnn.PackedSequence` is laid out like this.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant


class Packing(NamedTuple):
    """Where the N packed rows come from, and where their states are shown.

    Attributes:
        order: (B,) the rows of the batch by falling length. sizes: rows of each step.
        places: (N,) and (N,), the step and the row of the batch of each packed row.
        shown: (T*B,) the packed row whose state is the output of each place; N, one beyond, where it is zero.
        repeated: (T,B) the masked places that repeat the last output before them, None where none does.
    """

    order: Tensor
    sizes: list[int]
    places: tuple[Tensor, Tensor]
    shown: Tensor
    repeated: Tensor | None


def plan_packing(a: Inputs, variant: Variant) -> Packing | None:
    """Return how to pack the rows of the mask (T,B); None where they are to be left as they are.

    That is: the mask has holes or masks nothing; there are resets, which change the state in masked steps too, or
    dropout masks, which belong to rows; or the mask lies on an accelerator, which reading it back would stop.
    """
    mask = a.mask
    if mask is None or mask.device.type != "cpu" or a.resets is not None or a.drop is not None or mask.all():
        return None
    rises, falls = (mask[1:] > mask[:-1]).any(), (mask[1:] < mask[:-1]).any()
    if rises and falls:
        return None
    T, B = mask.shape
    lengths = mask.sum(0)
    order = lengths.argsort(descending=True, stable=True)
    ordered = mask[:, order]
    step, column = ordered.nonzero(as_tuple=True)
    row, nowhere = order[column], len(step)
    shown = lengths.new_full((T, B), nowhere)
    shown[step, row] = torch.arange(nowhere, device=shown.device)
    repeated = None
    if variant.reverse == bool(rises) and not variant.zero_output_for_mask:
        # The masked steps are processed after the valid ones.
        last = T - lengths if rises else lengths - 1
        final = shown.gather(0, last.clamp(0, T - 1)[None])  # nowhere in a row without a valid step
        repeated = ~mask & (final < nowhere)
        shown = torch.where(mask, shown, final)
    return Packing(order, ordered.sum(1).tolist(), (step, row), shown.flatten(), repeated)


def pack_inputs(a: Inputs, packing: Packing) -> Inputs:
    """Return the inputs without a mask: x and keep (N,..), the initial states (B,U) in the order of the packed rows."""
    keep = None if a.keep is None else a.keep[packing.places]
    return a._replace(x=a.x[packing.places], h0=a.h0[packing.order], mask=None, keep=keep)


def pack_output_gradients(d_out: Tensor, packing: Packing) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the packed outputs (N,U), and of the last states (B,U) where masked steps repeat them.

    Args:
        d_out: (T,B,U).
    """
    d_last = None
    if packing.repeated is not None:
        d_last = d_out.masked_fill(~packing.repeated[..., None], 0.0).sum(0)
    return d_out[packing.places], d_last
