"""Compile a scan kernel for a target without a device, and read back what the compiler made of it.

Triton carries its own assembler, so registers, spills, shared memory and instructions are known before any launch.
Floor 2, beside `launch`: the other place that names the kernels, and never runs them.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import probe
from .kernels.backward import gru_backward_kernel
from .kernels.forward import gru_forward_kernel
from .kernels.probe import exchange_kernel
from .tuning.configs import SINGLE, LaunchConfig, chunks_in_flight, exchanges, polls

# Targets by name, with the shared memory one program may use, in bytes (CUDA C++ Programming Guide, table "Technical
# Specifications per Compute Capability"; CDNA3 ISA reference: 64 KiB of LDS per workgroup).
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_86": (GPUTarget("cuda", 86, 32), 99 * 1024),
    "sm_89": (GPUTarget("cuda", 89, 32), 99 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "sm_120": (GPUTarget("cuda", 120, 32), 99 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_FLOAT32 = {"carry", "y_carry", "z_carry"}
_BYTES = {"mask", "resets"}
_INTEGERS = {"stops": "i32", "faults": "i32", "rows": "i64"}


@dataclass(frozen=True)
class Report:
    """What the compiler made of one kernel.

    Attributes:
        registers: per thread. spills: bytes of local memory (NVIDIA) or spilled registers (AMD). in_loop: the
            instructions that spill or fetch inside a loop, where they cost time at every step. shared: bytes.
        matrix: the matrix instruction found, or "". weights_in_loop: whether the recurrent weights are read from global
            memory inside the time loop.
    """

    kernel: str
    target: str
    dtype: str
    units: int
    config: LaunchConfig
    registers: int
    spills: int
    in_loop: int
    shared: int
    shared_limit: int
    matrix: str
    weights_in_loop: bool

    def violations(self) -> list[str]:
        """Return what breaks the budget every shipped configuration keeps; some schedules stream their weights."""
        broken = []
        if self.in_loop:
            broken.append(f"spills {self.spills}, with {self.in_loop} instructions inside the time loop")
        if self.shared > self.shared_limit:
            broken.append(f"shared memory {self.shared} of {self.shared_limit} bytes")
        if not self.matrix:
            broken.append("no matrix instruction")
        if self.weights_in_loop and not self.config.streams:
            broken.append("recurrent weights read inside the time loop")
        return broken


def compile_scan(
    direction: str,
    target: str,
    config: LaunchConfig,
    units: int,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "tf32",
    **flags: bool | int,
) -> Report:
    """Compile the "forward" or "backward" kernel for `target` and report on it.

    Args:
        direction: "forward" or "backward". target: a key of TARGETS. config, units, dtype: what is launched.
        precision: of float32 products. flags: the kernel's own constants, over the plain training defaults.

    Raises:
        ValueError: an unknown direction or target. Whatever the compiler raises, for a configuration it refuses.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"`direction` must be 'forward' or 'backward', got {direction!r}")
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, got {target!r}")
    kernel = gru_forward_kernel if direction == "forward" else gru_backward_kernel
    gpu, limit = TARGETS[target]
    if config.waits and config.exchange not in exchanges(gpu.backend):
        raise ValueError(f"`config.exchange` {config.exchange!r} is not sound on target {target!r}")
    constants = _constants(direction, config, units, dtype, precision, gpu) | flags
    absent = _absent_arguments(constants)
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or name in absent:
            signature[name] = "constexpr"
            values[(index,)] = constants.get(name)
        elif name in ("T", "B", "U", "step_begin", "step_end", "first_tile", "patience") or name.startswith("s_"):
            signature[name] = "i32"
            if name == "s_u_g":
                signature[name], values[(index,)] = "constexpr", 1
            elif name == "s_tile" or (name in ("U", "s_u_k") and units % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            element = "u8" if name in _BYTES else "fp32" if name in _FLOAT32 else _INTEGERS.get(name, _NAMES[dtype])
            if name == "board":
                element = "i64" if config.exchange == "tagged" and dtype == torch.float32 else "i32"
            signature[name] = "*" + element
            attributes[(index,)] = [["tt.divisibility", 16]]
    # No `maxnreg`: with a limit of its own the assembler spills where without one it does not.
    options = {"num_warps": config.num_warps}
    compiled = triton.compile(ASTSource(kernel, signature, values, attributes), target=gpu, options=options)
    registers, spills, in_loop = _resources(compiled, gpu)
    return Report(
        direction, target, _NAMES[dtype], units, config, registers, spills, in_loop, compiled.metadata.shared, limit,
        _matrix_instruction(compiled),
        weights_read_in_loop(compiled.asm["ttgir"], [name for name, kind in signature.items() if kind != "constexpr"]),
    )  # fmt: skip


def compile_probe(target: str, method: str, programs: int, dtype: torch.dtype, num_warps: int = 4) -> tuple[int, int]:
    """Compile the exchange alone (`probe.Probe`) for `target`; return registers per thread and spilled bytes."""
    gpu, _ = TARGETS[target]
    signature: dict[str, str] = {}
    values, attributes = {}, {}
    constants = probe.constants(method, programs, num_warps)
    for index, name in enumerate(exchange_kernel.arg_names):
        if name in constants:
            signature[name], values[(index,)] = "constexpr", constants[name]
        elif name in ("first", "rounds", "patience", "U", "s_tile"):
            signature[name] = "i32"
        else:
            signature[name] = "*" + (_NAMES[dtype] if name == "blocks" else "i32")
            if name == "board" and method == "tagged" and dtype == torch.float32:
                signature[name] = "*i64"
        if name not in ("first", "rounds", "patience", *constants):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(exchange_kernel, signature, values, attributes)
    return _resources(triton.compile(source, target=gpu, options={"num_warps": num_warps}), gpu)[:2]


def _constants(
    direction: str, config: LaunchConfig, units: int, dtype: torch.dtype, precision: str, gpu: GPUTarget
) -> dict:
    chunks = -(-units // config.block_k)
    shared = dict(
        BLOCK_B=config.block_b, BLOCK_H=config.block_h, BLOCK_K=config.block_k, NK=chunks,
        GROUP=chunks_in_flight(config, chunks, dtype.itemsize, 1 if direction == "forward" else 3),
        SINGLE=config.schedule == SINGLE, PERSISTENT=config.waits, STREAM=config.streams, EXCHANGE=config.exchange,
        POLLS=polls(-(-units // config.block_h), config.num_warps), PTX=gpu.backend == "cuda", PHASE=0, WAVES=False,
        ACT=1, REC_ACT=2, RESET_AFTER=True, ZERO_MASKED=False, REVERSE=False, GATE_Z=0, GATE_R=1, DROPS=0,
        HAS_MASK=False, HAS_RESET=False, HAS_ROWS=False,
        DOT=getattr(triton.language, str(dtype).removeprefix("torch.")),
        PRECISION=precision if dtype == torch.float32 else "ieee",
    )  # fmt: skip
    if direction == "forward":
        return shared | dict(HAS_FRESH=False, HAS_BIAS=True, SAVE_GATES=True, SEPARATE=False)
    return shared | dict(HAS_OUT=True, FRESH_GRADIENT=False)


def _is_tagged(c: dict) -> bool:
    return c["PERSISTENT"] and c["EXCHANGE"] == "tagged"


def _absent_arguments(c: dict) -> set[str]:
    absent = set()
    for name, present in (
        ("mask", c["HAS_MASK"]), ("resets", c["HAS_RESET"]), ("drop", c["DROPS"]), ("board", c["PERSISTENT"]),
        ("faults", c["PERSISTENT"]), ("stops", c["HAS_MASK"]), ("rows", c["HAS_ROWS"]), ("y_carry", c["HAS_MASK"]),
        ("d_gh_n", c["RESET_AFTER"]),
        ("bias_n", c.get("HAS_BIAS")), ("fresh", c.get("HAS_FRESH")), ("d_out", c.get("HAS_OUT")),
        ("d_fresh", c.get("FRESH_GRADIENT")),
        ("middle", not c["RESET_AFTER"] and not c["SINGLE"] and not _is_tagged(c)),
        ("z_carry", c["PHASE"] > 0), ("first_tile", c["WAVES"]),
    ):  # fmt: skip
        if not present:
            absent.add(name)
    return absent


@functools.cache
def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _resources(compiled, gpu: GPUTarget) -> tuple[int, int, int]:
    """Return (registers per thread, spilled bytes or registers, instructions that spill or fetch inside a loop)."""
    if gpu.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])  # type: ignore[index]
        spills = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])  # type: ignore[index]
        return registers, spills, spills  # where they stand is not looked for: each counts
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        shown = _run("cuobjdump", "-res-usage", file.name)
        registers = int(re.search(r"REG:(\d+)", shown)[1])  # type: ignore[index]
        spills = int(re.search(r"STACK:(\d+)", shown)[1])  # type: ignore[index]
        return registers, spills, spills and count_spills_in_loops(_run("nvdisasm", "-c", file.name))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=True).stdout


def count_spills_in_loops(text: str) -> int:
    """Return how many accesses to local memory stand in a loop of NVIDIA's assembly: before a jump back, after its aim.

    A value that is put away before the time loop and fetched after it costs nothing, so it does not count.
    """
    lines = text.splitlines()
    places = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"(\.L_x_\d+):", line))}
    inside: set[int] = set()
    for i, line in enumerate(lines):
        if (match := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) and places[match[1]] < i:
            inside.update(range(places[match[1]], i))
    return sum(bool(re.search(r"\b(?:STL|LDL)\b", lines[i])) for i in inside)


def _matrix_instruction(compiled) -> str:
    text = compiled.asm.get("ptx") or compiled.asm.get("amdgcn")
    for name in ("wgmma.mma_async", "tcgen05.mma", "mma.sync", "v_mfma"):
        if name in text:
            return name
    return ""


def weights_read_in_loop(ttgir: str, arguments: list[str]) -> bool:
    """Return whether a load from the argument `u` stands inside a loop of the GPU dialect's text.

    Args:
        arguments: the kernel's, in order, without constants; before Triton 3.6 the text calls them by number.
    """
    weights = "%u" if "%u: " in ttgir else f"%arg{arguments.index('u')}"
    derived, depth, inside = {weights}, 0, []
    for line in ttgir.splitlines():
        stripped = line.strip()
        if match := re.match(r"(%[\w:]+(?:, %[\w:]+)*) = (.*)", stripped):
            name, body = match[1], match[2]
            uses = {token.split("#")[0] for token in re.findall(r"%[\w#]+", body)}
            if uses & derived:
                if re.match(r"(tt\.load|ttg\.async_copy|amd\w*\.buffer_load)", body):
                    if depth:
                        return True
                elif not body.startswith("scf."):
                    derived.add(name.split(":")[0])
            if body.startswith(("scf.for", "scf.while")):
                inside.append(line[: len(line) - len(line.lstrip())])
                depth += 1
        if inside and line.startswith(inside[-1] + "}") and " do {" not in line:
            inside.pop()
            depth -= 1
    return False
