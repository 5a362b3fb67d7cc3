"""One benchmark call made concrete: weights and several sets of random inputs on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference import gru_reference
from .workloads import Workload

# "tf32" is float32 with the matrix units' short products; "float32" is without.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
INPUT_SETS = 3
KEEP_RATE = 0.8


@dataclass(frozen=True)
class Inputs:
    """One set of inputs, time-major.

    Attributes:
        x: (T,B,I). lengths: (B,) on the host, or None. mask, resets: (T,B) bool or None.
        drop: (B,U) scaled mask or None. cotangent: (T,B,U).
    """

    x: Tensor
    lengths: Tensor | None
    mask: Tensor | None
    resets: Tensor | None
    drop: Tensor | None
    cotangent: Tensor


class Work:
    """A workload in a dtype on a device.

    Attributes:
        weights: kernel (3U,I), recurrent kernel (3U,U) and two biases (3U,), in torch's layout and gate order; one
            bias alone is used where `reset_after` is False.
        inputs: `INPUT_SETS` sets.
    """

    def __init__(self, workload: Workload, dtype: str, device: str | torch.device = "cpu", seed: int = 0):
        self.workload, self.dtype_name, self.dtype = workload, dtype, DTYPES[dtype]
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(seed)
        w = workload

        def uniform(*shape: int) -> Tensor:
            values = (torch.rand(*shape, generator=generator) * 2 - 1) * w.units**-0.5
            return values.to(self.device, self.dtype)

        U = w.units
        self.weights = [uniform(3 * U, w.input_size), uniform(3 * U, U), uniform(3 * U), uniform(3 * U)]
        if not w.reset_after:
            self.weights[3] = torch.zeros_like(self.weights[3])
        self.inputs = [self._draw(generator) for _ in range(INPUT_SETS)]

    def _draw(self, generator: torch.Generator) -> Inputs:
        w, place = self.workload, self.device
        lengths = mask = resets = drop = None
        if w.lengths:
            lengths = torch.randint(max(1, w.time // 10), w.time + 1, (w.batch,), generator=generator)
            lengths[0] = w.time  # so that packed sequences have T steps too
            mask = (torch.arange(w.time)[:, None] < lengths).to(place)
        if w.resets:
            resets = (torch.rand(w.time, w.batch, generator=generator) < 1 / 32).to(place)
        if w.recurrent_dropout:
            kept = torch.rand(w.batch, w.units, generator=generator) < KEEP_RATE
            drop = (kept / KEEP_RATE).to(place, self.dtype)
        x = torch.randn(w.time, w.batch, w.input_size, generator=generator).to(place, self.dtype)
        cotangent = torch.randn(w.time, w.batch, w.units, generator=generator).to(place, self.dtype)
        return Inputs(x, lengths, mask, resets, drop, cotangent)

    def expected(self, number: int = 0) -> Tensor:
        """Return the outputs (T,B,U) of one set of inputs, by the reference in float32 (float64 for float64)."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        given = self.inputs[number]
        weights = [value.to(dtype) for value in self.weights]
        w = self.workload
        bias = tuple(weights[2:])
        with torch.no_grad():
            outputs, _ = gru_reference(
                given.x.to(dtype), weights[0], weights[1], bias, activation=w.activation, reset_after=w.reset_after,
                mask=given.mask, resets=given.resets, time_major=True, layout="torch",
                recurrent_dropout=None if given.drop is None else given.drop.to(dtype),
            )  # fmt: skip
        return outputs

    def error(self, outputs: Tensor, number: int = 0) -> float:
        """Return the largest difference of `outputs` (T,B,U) from what is expected, at valid steps only."""
        difference = (outputs.detach().double() - self.expected(number).double()).abs()
        mask = self.inputs[number].mask
        if mask is not None:
            difference = difference * mask[:, :, None]
        return difference.max().item()

    @property
    def allowed_error(self) -> float:
        """What `error` may be: outputs lie in (-1, 1), and errors of single steps do not add up."""
        return {"float64": 1e-9, "float32": 1e-4, "tf32": 2e-2, "float16": 3e-2, "bfloat16": 0.2}[self.dtype_name]


@contextlib.contextmanager
def float32_products(dtype: str) -> Iterator[None]:
    """Hold torch's float32 products on a GPU to full precision, or to TF32 where `dtype` is "tf32"."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
