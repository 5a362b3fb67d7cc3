"""Compile a scan kernel for a target without a device, and read back what the compiler made of it.

Triton carries its own assembler, so registers, spills, shared memory and instructions are known before any launch.
What a kernel is given is asked of `scan` and `probe`, with tensors that have no data: what is compiled here is what
would be launched. Nothing is run.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...call.problem import Variant
from ...tuning.configs import Device, LaunchConfig, norm_width
from ..eager.continuation import Norm
from . import launching
from .constants import Constants
from .kernels.backward import gru_backward_kernel
from .kernels.forward import gru_forward_kernel
from .kernels.probe import exchange_kernel
from .probe import Probe
from .scan import Workspace, backward_arguments, forward_arguments

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
# Triton's names of what a pointer aims at.
_NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What the compiler made of one kernel.

    Attributes:
        registers: per thread. spills: bytes of local memory (NVIDIA) or spilled registers (AMD). in_loop: the
            instructions that spill or fetch inside a loop, where they cost time at every step. shared: bytes.
        matrix: the matrix instruction found, or "". weights_in_loop: whether the recurrent weights are read from global
            memory inside the time loop. binary: the machine code of an NVIDIA device, else empty.
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
    binary: bytes = field(default=b"", repr=False)

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
    variant: Variant = Variant(),  # noqa: B008 - frozen
    **features: Any,
) -> Report:
    """Compile the "forward" or "backward" kernel for `target` and report on it.

    Args:
        direction: "forward" or "backward". target: a key of TARGETS. config, units, dtype: what is launched.
        precision: of float32 products. variant: of the GRU. features: as of `example_arguments`.

    Raises:
        ValueError: an unknown direction or target. Whatever the compiler raises, for a configuration it refuses.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"`direction` must be 'forward' or 'backward', got {direction!r}")
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, got {target!r}")
    gpu, limit = TARGETS[target]
    workspace, given = example_arguments(direction, config, units, dtype, variant, **features)
    # A schedule of one launch per step is compiled with all phases in one.
    C = workspace.constants(gpu.backend, variant, given, precision)
    kernel = gru_forward_kernel if direction == "forward" else gru_backward_kernel
    # No `maxnreg`: with a limit of its own the assembler spills where without one it does not.
    source = describe_source(kernel, given, C)
    compiled = triton.compile(source, target=gpu, options={"num_warps": config.num_warps})
    registers, spills, in_loop = _resources(compiled, gpu)
    return Report(
        direction, target, _NAMES[dtype], units, config, registers, spills, in_loop, compiled.metadata.shared, limit,
        _matrix_instruction(compiled),
        weights_read_in_loop(
            compiled.asm["ttgir"], [name for name, kind in source.signature.items() if kind != "constexpr"]
        ),
        compiled.asm.get("cubin", b""),
    )  # fmt: skip


def compile_probe(target: str, method: str, programs: int, dtype: torch.dtype, num_warps: int = 4) -> tuple[int, int]:
    """Compile the exchange alone (`probe.Probe`) for `target`; return registers per thread and spilled bytes."""
    gpu, _ = TARGETS[target]
    probe = Probe(method, programs, dtype=dtype, device="meta", num_warps=num_warps)
    if method == "marked":
        from .resident_probe import describe_marked  # older versions of Triton have no Gluon

        source = describe_marked(probe)
    else:
        source = describe_source(exchange_kernel, probe.arguments(1, 1), probe.constants(gpu.backend))
    return _resources(triton.compile(source, target=gpu, options={"num_warps": num_warps}), gpu)[:2]


def example_arguments(
    direction: str, config: LaunchConfig, units: int, dtype: torch.dtype, variant: Variant, *, bias: bool = True,
    mask: bool = False, resets: bool = False, fresh: bool = False, drops: int = 0, crowded: bool = False,
) -> tuple[Workspace, dict[str, Any]]:  # fmt: skip
    """Return what a scan in training would launch its kernel with, as tensors without data.

    Args:
        bias, mask, resets: whether there are some. fresh: whether resets start from states, or want their gradient.
        drops: recurrent dropout masks, 0, 1 or 3. crowded: whether there are more batch tiles than run at once, so that
            programs that wait go in waves, and masked rows in the order of their lengths.
    """
    T, tiles, counted = 2, 2 if crowded else 1, 0
    if variant.layer_norm is not None and norm_width(units) > units:
        units, counted = norm_width(units), units
    B = tiles * config.block_b
    # One tile after the other, or both at once.
    processors = -(-units // config.block_h) * (1 if crowded else tiles)
    device = Device(processors, shared_memory=0)

    def empty(*shape: int, present: bool = True, dtype: torch.dtype = dtype) -> Any:
        return torch.empty(shape, dtype=dtype, device="meta") if present else None

    u = empty(units, 3 * units)
    workspace = Workspace(direction, config, u, B, device, counted)
    steps = (empty(T, B, present=mask, dtype=torch.bool), empty(T, B, present=resets, dtype=torch.bool))
    drop = empty(drops, B, units, present=drops > 0)
    norm = None
    if variant.layer_norm is not None:
        scale = empty(3 * units)
        norm = Norm(scale, scale, empty(T, B, 3 * units), empty(T, B, dtype=torch.float32))
    if direction == "forward":
        bias_n = empty(units, present=bias)
        starts = empty(B, units, present=fresh)
        given, _ = forward_arguments(
            workspace, empty(T, B, 3 * units), u, bias_n, empty(B, units), *steps, starts, drop, variant, True,
            norm=norm,
        )  # fmt: skip
    else:
        gates, states = empty(4 if variant.reset_after else 3, T, B, units), empty(T, B, units)
        given = backward_arguments(
            workspace, states, empty(B, units), gates, states, u, *steps, drop, variant, fresh, norm=norm
        )
    tile, _ = next(launching.waves(workspace.grid, workspace.tiles_at_once))
    return workspace, given | {"first_tile": tile}


def describe_source(kernel: triton.JITFunction, given: Mapping[str, Any], C: Constants) -> ASTSource:
    """Return `kernel` specialised on its arguments as a launch does it: on None, on 1, and on multiples of 16."""
    signature: dict[str, str] = {}
    values: dict[tuple[int, ...], Any] = {}
    attributes = {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        value = C if name == "C" else given[name]
        if isinstance(value, Tensor):
            # An allocator gives no other addresses.
            signature[name], attributes[(index,)] = "*" + _NAMES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, int) and (value != 1 or parameter.do_not_specialize):
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name], values[(index,)] = "constexpr", value
    return ASTSource(kernel, signature, values, attributes)


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
