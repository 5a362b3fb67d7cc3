"""Keras's own path without its general loop, for the calls in which it is the faster one."""

from __future__ import annotations

from keras.src import backend
from torch import Tensor

# Up to this T, Keras's few operations cost less than one call of ours: seen on an AMD EPYC with AVX2, one thread, in
# training and in inference, for B of 1 to 64 and U of 32 to 256.
LONGEST = 4


def run(layer, x: Tensor, state: Tensor, input_dropout, has_derivatives: bool):
    """Return what `inner_loop` returns, or None where ours is to compute it.

    Args:
        x: (B,T,I). state: (B,U). input_dropout: a mask (B,1,I), three of them, or None.
        has_derivatives: whether both activations are among those for which there is a fast scan.
    """
    if layer.backend != "auto" or x.device.type != "cpu" or isinstance(input_dropout, tuple):
        return None
    if has_derivatives and x.shape[1] > LONGEST:
        return None
    cell = layer.cell
    try:
        return backend.gru(
            x if input_dropout is None else x * input_dropout,
            state,
            None,
            kernel=cell.kernel,
            recurrent_kernel=cell.recurrent_kernel,
            bias=cell.bias,
            activation=cell.activation,
            recurrent_activation=cell.recurrent_activation,
            return_sequences=layer.return_sequences,
            go_backwards=layer.go_backwards,
            unroll=layer.unroll,
            reset_after=cell.reset_after,
        )
    except NotImplementedError:  # This version of Keras has no such path.
        return None
