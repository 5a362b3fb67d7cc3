"""Compile a resident kernel for a target without a device, read its machine code, and hold it to the budgets.

    python -m tritongru.tools.replay.residents

writes what the shipped tilings cost by the replay, data/replayed.csv: estimates, to compare kernels by.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from ...backends.triton import tilings
from ...backends.triton.kernels.resident_backward import resident_backward_kernel
from ...backends.triton.kernels.resident_forward import resident_forward_kernel
from ...backends.triton.kernels.resident_layout import EACH, Constants, make_constants
from ...backends.triton.tilings import MARKED, NO_EXCHANGE, Tiling
from ...tuning.configs import Device
from ...tuning.replayed import PATH
from . import sass, timeline
from .latencies import HOPPER
from .sass import Instruction
from .timeline import Replay

KERNELS = {"forward": resident_forward_kernel, "backward": resident_backward_kernel}
# An H100 and an A100: multiprocessors and shared memory of NVIDIA's CUDA C++ Programming Guide.
DEVICES = {
    "sm_90": Device(132, 227 * 1024, True, 32, "", "sm_90"),
    "sm_80": Device(108, 163 * 1024, True, 32, "", "sm_80"),
}
CLOCK = 1.755  # GHz, of an H100: for microseconds
ITEM_SIZES = {"fp16": 2, "bf16": 2, "fp32": 4}
# What a feature adds to a plain training call, for the table of prices.
FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "mask": dict(forward=dict(HAS_MASK=True, SEPARATE=True), backward=dict(HAS_MASK=True)),
    "resets": dict(
        forward=dict(HAS_RESET=True, SEPARATE=True, HAS_FRESH=True), backward=dict(HAS_RESET=True, FRESH_GRADIENT=True)
    ),
    "dropout 1": dict(forward=dict(DROPS=1), backward=dict(DROPS=1)),
    "dropout 3": dict(forward=dict(DROPS=3), backward=dict(DROPS=3)),
    "reset_after=False": dict(forward=dict(RESET_AFTER=False), backward=dict(RESET_AFTER=False)),
    "reversed": dict(forward=dict(REVERSE=True), backward=dict(REVERSE=True)),
    "members": dict(forward=dict(MEMBERS=True, REVERSE=EACH), backward=dict(MEMBERS=True, REVERSE=EACH)),
    "torch's layout": dict(forward=dict(KEYS_FIRST=False), backward=dict(KEYS_FIRST=False)),
    "exact gates": dict(forward=dict(APPROXIMATE=False), backward={}),
    "without gates": dict(forward=dict(SAVE_GATES=False), backward={}),
}


@dataclass(frozen=True)
class Report:
    """What the compiler made of one kernel.

    Attributes:
        registers: of a thread. shared: bytes. step: the instructions of a step. replay: of that step.
        latency: its cycles where the second-level cache had any bandwidth.
    """

    kernel: str
    target: str
    dtype: str
    units: int
    tiling: Tiling
    constants: Constants
    registers: int
    shared: int
    step: list[Instruction]
    replay: Replay
    latency: float

    def row(self) -> dict[str, str | int | float]:
        """Return a line of the table."""
        counts, t = sass.count(self.step), self.tiling
        return dict(
            kernel=self.kernel, target=self.target, dtype=self.dtype, units=self.units,
            tiling=str(t), registers=self.registers, shared=self.shared,
            instructions=counts["instructions"], products=counts["HMMA"], barriers=counts["BAR"],
            fences=counts["MEMBAR"], cache_bytes=self.replay.cache_bytes, cycles=round(self.replay.cycles),
            cycles_of_latency=round(self.latency), microseconds=round(self.replay.cycles / CLOCK / 1e3, 2),
        )  # fmt: skip


def compile_resident(kernel: str, target: str, tiling: Tiling, units: int, dtype: str = "bf16", **asked: Any) -> Report:
    """Compile "forward" or "backward" for `target`, "sm_90", and replay a step.

    Args:
        dtype: "bf16", "fp16" or "fp32". asked: constants over those of a plain training call.
    """
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` must be one of {', '.join(KERNELS)}, got {kernel!r}")
    asked = dict(APPROXIMATE=kernel == "forward" and ITEM_SIZES[dtype] == 2) | asked
    constants = make_constants(kernel, tiling, units, ITEM_SIZES[dtype], "tf32", **asked)
    signature, values, attributes = _signature(kernel, constants, dtype)
    source = GluonASTSource(KERNELS[kernel], signature, values, attributes)
    options = dict(num_warps=tiling.num_warps, maxnreg=tiling.max_registers())
    gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=gpu, options=options)
    cubin = compiled.asm["cubin"]
    step, replay = timeline.replay_cubin(cubin, tiling.num_warps)
    unbound = timeline.replay(step, tiling.num_warps, replace(HOPPER, cache_rate=float("inf"))).cycles
    return Report(
        kernel, target, dtype, units, tiling, constants, _registers(cubin), compiled.metadata.shared, step, replay,
        unbound,
    )  # fmt: skip


def _signature(kernel: str, c: Constants, dtype: str) -> tuple[dict, dict, dict]:
    """Return what a launch with these constants is compiled for."""
    v, marked = c.value, c.value("EXCHANGE") == MARKED
    drops, after = v("DROPS"), v("RESET_AFTER")
    present = dict(
        mask=v("HAS_MASK"), stops=v("HAS_MASK"), resets=v("HAS_RESET"), rows=v("HAS_ROWS"), fresh=v("HAS_FRESH"),
        drop=drops > 0, bias_n=v("HAS_BIAS"), states=v("SEPARATE"), directions=v("REVERSE") == EACH and v("MEMBERS"),
        gates=kernel == "backward" or v("SAVE_GATES"), faults=marked, given=marked,
        words=marked and not v("DIRECT"), passed=marked and not after, d_out=v("HAS_OUT"), d_gh_n=after,
        d_fresh=v("FRESH_GRADIENT"), y_carry=v("HAS_MASK"), first_tile=False,
    )  # fmt: skip
    kinds = dict(
        T="i32", B="i32", patience="i32", s_fresh_t="i32", faults="*i32", carry="*fp32", y_carry="*fp32", mask="*u8",
        resets="*u8", rows="*i64", stops="*i32", directions="*u8",
    )  # fmt: skip
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(KERNELS[kernel].arg_names):
        if name == "C" or not present.get(name, True):
            signature[name], values[(i,)] = "constexpr", c if name == "C" else None
            continue
        signature[name] = kinds.get(name, "*" + dtype)
        if signature[name].startswith("*"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, values, attributes


def _registers(cubin: bytes) -> int:
    tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", shown)[1])  # type: ignore[index]


# Of a plain training call in half precision with at most 16 rows: up to so many units, instructions of a warp; and, on
# sm_90, cycles: forward with the time of bytes, backward of latency alone, since three gradients of all units are most
# of a step's bytes.
INSTRUCTIONS = {256: 400, 1024: 650}
CYCLES = {
    "forward": {128: 1150, 256: 1300, 512: 1650, 1024: 2200},
    "backward": {128: 1200, 256: 1150, 512: 1450, 1024: 2300},
}


def broken_budgets(report: Report, cycles: int | None = None) -> list[str]:
    """Return the budgets that a kernel breaks.

    Args:
        cycles: in place of CYCLES.
    """
    t, units, counts, broken = report.tiling, report.units, sass.count(report.step), []
    size = ITEM_SIZES[report.dtype]
    times = sass.repetition(report.step, t.num_warps, t.block_b, t.block_h, t.depth(units, size))
    limits = [
        ("products' repetition", round(times, 3), 1),
        ("weight bytes from shared memory", weight_bytes(report), 0 if units <= 1024 else _weights(report)),
        ("block barriers", counts["BAR"], 4),
        ("fences", counts["MEMBAR"], 0),
        ("accesses to local memory", sass.spills_in(report.step), 0),
        ("special functions of a lane", counts["MUFU"], 6 * t.block_b * t.block_h / (32 * t.num_warps)),
        ("instructions", counts["instructions"], next((n for u, n in INSTRUCTIONS.items() if units <= u), None)),
    ]
    if report.target == "sm_90":
        taken = report.replay.cycles if report.kernel == "forward" else report.latency
        limits.append(("cycles", round(taken), cycles or CYCLES[report.kernel].get(units)))
    for name, found, limit in limits:
        if limit is not None and found > limit:
            broken.append(f"{name}: {found} of {limit:g}")
    return broken


def _weights(report: Report) -> int:
    t, size = report.tiling, ITEM_SIZES[report.dtype]
    return 3 * t.block_h * t.depth(report.units, size) * size


def weight_bytes(report: Report) -> int:
    """Return the bytes that a program reads from shared memory in a step, beyond those of sums and states."""
    t, size = report.tiling, ITEM_SIZES[report.dtype]
    read = (
        sum(128 * x.matrices if x.starts("LDSM") else 32 * x.size for x in report.step if x.starts("LDS")) * t.num_warps
    )
    drops, after = report.constants.value("DROPS"), report.constants.value("RESET_AFTER")
    if t.exchange == NO_EXCHANGE:
        # Each warp reads all rows: of every array that is multiplied.
        arrays = 3 if report.kernel == "backward" or drops == 3 else 1 if after else 2
        return read - arrays * t.block_b * t.depth(report.units, size) * size * t.num_warps
    sums = 3 if report.kernel == "forward" or drops == 3 else 1 if after else 2
    return read - sums * t.warps_k * t.block_b * t.block_h * 4 if t.warps_k > 1 else read


def shipped(target: str, units: Iterable[int], dtype: str = "bf16") -> Iterator[Report]:
    """Yield a report for the tiling of each size in each direction, for at most 16 rows."""
    for n, kernel in itertools.product(units, KERNELS):
        tiling = tilings.choose(kernel, n, ITEM_SIZES[dtype], 16, DEVICES[target])
        if tiling is not None:
            yield compile_resident(kernel, target, tiling, n, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=PATH)
    parser.add_argument(
        "--units", type=int, nargs="+", default=[32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    )
    parser.add_argument("--features", type=int, default=512, help="units for the prices of features")
    args = parser.parse_args()
    rows = [dict(feature="", **report.row()) for report in shipped("sm_90", args.units)]
    rows += [dict(feature="", **report.row()) for report in shipped("sm_90", [64, 256, 512], "fp32")]
    # What `tilings.ROW_COSTS` and `ALONE_COSTS` are read off.
    for kernel, units in itertools.product(KERNELS, (128, 256, 512)):
        able = [
            tiling
            for tiling in tilings.candidates(kernel, units, 2)
            if not tilings.reasons_against_tiling(tiling, kernel, units, 2, DEVICES["sm_90"])
        ]
        first = {(tiling.exchange, tiling.block_b): tiling for tiling in reversed(able)}
        for (_, block_b), tiling in first.items():
            if tiling != tilings.choose(kernel, units, 2, 16, DEVICES["sm_90"]):
                report = compile_resident(kernel, "sm_90", tiling, units)
                rows.append(dict(feature=f"{block_b} rows", **report.row()))
    for name, kernel in itertools.product(FEATURES, KERNELS):
        asked = FEATURES[name][kernel]
        if asked:
            tiling = tilings.choose(kernel, args.features, 2, 16, DEVICES["sm_90"], asked.get("DROPS", 0))
            assert tiling is not None
            rows.append(dict(feature=name, **compile_resident(kernel, "sm_90", tiling, args.features, **asked).row()))
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "triton"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | dict(triton=triton.__version__) for row in rows)


if __name__ == "__main__":
    main()
