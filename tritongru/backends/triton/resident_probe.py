"""Launch the exchange of the resident kernels alone: the method "marked" of `probe.Probe`."""

from __future__ import annotations

import torch
from triton.experimental.gluon._runtime import GluonASTSource

from .kernels.resident_layout import Constants, make_constants
from .kernels.resident_probe import marked_exchange_kernel
from .resident import make_marked
from .tilings import MARKED, Tiling


def run_marked(probe, rounds: int, patience: int) -> None:
    """Exchange `rounds` times more in one launch, in memory that is full of marks."""
    rows = probe.tiles * probe.blocks.shape[2]
    words = make_marked(probe.blocks, rounds, rows, probe.units)
    marked_exchange_kernel[(probe.programs, probe.tiles)](
        words, probe.gathered, probe.faults, probe.round & 0xFFFF, rounds, patience,
        C=probe_constants(probe.units, probe.blocks.dtype, probe.config.num_warps), **probe.options(),
    )  # fmt: skip
    probe.round += rounds


def probe_constants(units: int, dtype: torch.dtype, num_warps: int) -> Constants:
    """Return what the kernel is compiled for."""
    return make_constants("forward", Tiling(16, 16, num_warps, 1, MARKED), units, dtype.itemsize, "tf32")


def describe_marked(probe) -> GluonASTSource:
    """Return the kernel's source with what it is launched with."""
    io = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}[probe.blocks.dtype]
    kinds = dict(words=io, gathered="*i32", faults="*i32", first="i32", rounds="i32", patience="i32", C="constexpr")
    constants = {(6,): probe_constants(probe.units, probe.blocks.dtype, probe.config.num_warps)}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    return GluonASTSource(marked_exchange_kernel, kinds, constants, aligned)
