"""What an old Keras file leaves unsaid: defaults that changed from version to version, and the layout of CuDNNGRU.

Source: `keras/layers/recurrent.py` (2.0 to 2.3, and of tf.keras 1.x and 2.x); `_convert_rnn_weights` in
`keras/saving/hdf5_format.py` (v2.9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CUDNN = "CuDNNGRU"
# cuDNN has one GRU; its layer has no arguments for these.
_CUDNN_CONFIG = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "reset_after": True,
    "use_bias": True,
    "class_name": CUDNN,
}


def default_reset_after(version: str) -> bool | None:
    """Return what a GRU without the key `reset_after` computes in a file of Keras `version`; None where none can tell.

    The key came with Keras 2.1. Without it, the standalone Keras (up to 2.3) and the tf.keras of TensorFlow 1 (up to
    "2.1.6-tf") mean False, that of TensorFlow 2 ("2.2.4-tf", "2.3.0-tf", 2.4 and later) and Keras 3 mean True.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        return None
    number = int(match[1]), int(match[2])
    if number < (2, 0):
        return None
    return number >= ((2, 2) if version.endswith("-tf") else (2, 4))


def default_config(version: str, reset_after: bool | None) -> dict[str, Any]:
    """Return what to take for weights without a configuration where Keras `version` had other defaults than 2.9.

    Args:
        reset_after: what the bias tells; None without a bias.
    """
    default = default_reset_after(version)
    config: dict[str, Any] = {}
    if reset_after is None and default is not None:
        config["reset_after"] = reset_after = default
    # Keras 2.3 took the sigmoid. A layer with two biases held the weights of CuDNNGRU before, which has it too.
    if default is False and not reset_after and not version.startswith("2.3"):
        config["recurrent_activation"] = "hard_sigmoid"
    return config


def cudnn_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a CuDNNGRU as that of the GRU that computes the same."""
    return {**config, **_CUDNN_CONFIG}


def is_cudnn(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Return whether arrays of these shapes are those of a CuDNNGRU: a bias (6U,)."""
    return len(shapes) == 3 and len(shapes[1]) == 2 and shapes[2] == (6 * shapes[1][0],)


def convert_cudnn(kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    """Return kernel (I,3U), recurrent_kernel (U,3U) and bias (2,3U) of a CuDNNGRU's arrays.

    The gates are z, r, h in both. cuDNN multiplies from the left: what is kept as I rows of U numbers for a gate are U
    rows of I for it, in the same order in memory.

    Args:
        kernel: (I,3U). recurrent_kernel: (U,3U). bias: (6U,), the input's 3U first.
    """

    def transpose(matrix: np.ndarray) -> np.ndarray:
        rows, columns = matrix.shape[0], matrix.shape[1] // 3
        gates = (np.ascontiguousarray(gate).reshape(columns, rows).T for gate in np.split(matrix, 3, axis=1))
        return np.concatenate(list(gates), axis=1)

    return [transpose(kernel), transpose(recurrent_kernel), bias.reshape(2, -1)]
