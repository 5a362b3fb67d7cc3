"""What a training step keeps for its backward pass: computed from the sizes, and measured.

    gates      4 T B U  (z, r, n and the candidate's recurrent side), 3 T B U without reset_after
    outputs    T B U
    states     T B U, only with a mask, and in Triton's kernels with resets: otherwise they are the outputs
    input      T B I
    weights    3U I + 3U U + 6U (both biases of the torch layout); initial state B U
    recompute  all of these without the gates

    torch.nn.GRU on a CPU   T B (I + 7 U) + 3U I + 3U U    (autograd's graph of its steps)
    torch.nn.GRU on cuDNN   a buffer of a size that cuDNN alone knows: only measured, by the peak

Times the bytes of an element. Weights, input and outputs exist anyway; what a layer adds is gates and states.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .work import DTYPES
from .workloads import Workload


def kept_bytes(workload: Workload, dtype: str, recompute: bool = False, backend: str = "triton") -> dict[str, int]:
    """Return the bytes that the scan keeps between forward and backward, by what they are.

    Args:
        workload: sizes and features. dtype: of `work.DTYPES`. recompute: as in `tritongru.gru`.
        backend: "triton" or "eager".

    >>> sizes = kept_bytes(Workload("", 100, 2, 3, 4), "float32")
    >>> sizes["gates"], sizes["outputs"], kept_bytes(Workload("", 100, 2, 3, 4), "float32", recompute=True)["gates"]
    (12800, 3200, 0)
    """
    w, size = workload, DTYPES[dtype].itemsize
    step = w.time * w.batch * w.units * size
    separate = w.lengths or (w.resets and backend != "eager")
    parts = {
        "input": w.time * w.batch * w.input_size * size,
        "outputs": step,
        "states": step if separate else 0,
        "gates": 0 if recompute else (4 if w.reset_after else 3) * step,
        "weights": (3 * w.units * (w.input_size + w.units) + 6 * w.units) * size,
        "initial state": w.batch * w.units * size,
        "dropout mask": w.batch * w.units * size if w.recurrent_dropout else 0,
        "mask and resets": w.time * w.batch * (int(w.lengths) + int(w.resets)),
    }
    return parts


def kept_bytes_of_torch(workload: Workload, dtype: str) -> int:
    """Return the bytes that autograd keeps for `torch.nn.GRU` on a CPU; the outputs are among them."""
    w = workload
    weights = 3 * w.units * (w.input_size + w.units)
    return (w.time * w.batch * (w.input_size + 7 * w.units) + weights) * DTYPES[dtype].itemsize


def saved_bytes(call: Callable[[int], object]) -> int:
    """Return the bytes of all storages that autograd saved during `call(0)`, each counted once."""
    storages: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        # Keeping the tensor keeps its address from being used again.
        storages.setdefault(value.untyped_storage().data_ptr(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        call(0)
    return sum(value.untyped_storage().nbytes() for value in storages.values())


def peak_bytes(call: Callable[[int], object], device: torch.device) -> int | None:
    """Return the device memory that `call(0)` takes at its peak beyond what is allocated before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
