"""A Triton driver whose launch runs the emulator, so that a kernel is compiled and launched the way a GPU's is.

    with emulated_gpu(seed=1) as gpu:
        gru_forward_kernel[grid](...)          # tensors on the CPU
    gpu.instructions                           # how many warps' instructions were run

The assembler is left out: what stands in for the binary is the PTX itself. Whether the assembler takes it, and what it
makes of it, is for tests/kernels/test_ahead.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from tritongru import dispatch
from tritongru.backends.triton import families, reasons, resident
from tritongru.backends.triton import scan as launch
from tritongru.tuning import configs

from .machine import Code, Grid
from .ptx import parse

# Of a B200, an H100 and an A100: what tests of the schedules see of a device. NVIDIA, CUDA C++ Programming Guide.
DEVICES = {
    100: configs.Device(148, 227 * 1024, True, 32, "", "sm_100"),
    90: configs.Device(132, 227 * 1024, True, 32, "", "sm_90"),
    80: configs.Device(108, 163 * 1024, True, 32, "", "sm_80"),
}
_numbers = itertools.count(1000)


@dataclass
class EmulatedGPU:
    """What runs, and what was run.

    Attributes:
        capability: one of DEVICES. processors: in place of the device's own number of multiprocessors.
        seed: of the order of programs and warps; each launch draws another.
        edit: changes the PTX of a kernel before it is run, to see whether a mistake is found.
        limit: instructions a launch may run. instructions: those run so far. launches: kernels' names, in order.
        number: of the device.
    """

    capability: int = 90
    seed: int = 0
    edit: Callable[[str], str] | None = None
    limit: int = 1 << 40
    processors: int | None = None
    instructions: int = 0
    launches: list[str] = field(default_factory=list)
    # Triton keeps what it has compiled by device: with an edit it is a device of its own.
    number: int = 0

    def __post_init__(self):
        self.number = self.capability if self.edit is None else next(_numbers)

    @property
    def device(self) -> configs.Device:
        """What `launch` knows of it."""
        device = DEVICES[self.capability]
        return device if self.processors is None else replace(device, processors=self.processors)


@contextlib.contextmanager
def emulated_gpu(**options):
    """Inside the block, kernels run emulated on CPU tensors, and backend="triton" takes those; yields EmulatedGPU.

    `options` are EmulatedGPU's.
    """
    gpu = EmulatedGPU(**options)
    config = triton.runtime.driver
    before = config._active, knobs.runtime.add_stages_inspection_hook
    patches = [
        (launch, "device_limits", lambda device: gpu.device),
        (resident, "device_limits", lambda device: gpu.device),
        (families, "device_limits", lambda device: gpu.device),
        (reasons, "device_limits", lambda device: gpu.device),
        # Asked there only whether kernels can run on a CPU.
        (reasons, "is_interpreted", lambda: True),
    ]
    dispatch.forget()
    originals = [(module, name, getattr(module, name)) for module, name, _ in patches]
    config.set_active(_Driver(gpu))
    knobs.runtime.add_stages_inspection_hook = _leave_out_the_assembler
    for module, name, replacement in patches:
        setattr(module, name, replacement)
    try:
        yield gpu
    finally:
        config._active, knobs.runtime.add_stages_inspection_hook = before
        for module, name, original in originals:
            setattr(module, name, original)
        dispatch.forget()


def _leave_out_the_assembler(*stage):
    """Triton's hook: without arguments, what tells these binaries from others in its cache."""
    if not stage:
        return "emulator", hashlib.sha256(b"PTX in place of a binary").hexdigest()
    _, stages, *_ = stage
    stages["cubin"] = lambda text, metadata: text.encode()
    return None


class _Driver(DriverBase):
    """What Triton asks a driver for."""

    def __init__(self, gpu: EmulatedGPU):
        self.gpu = gpu
        self.utils = _Utilities(gpu)
        self.launcher_cls = _Launcher

    def is_active(self):
        return True

    def get_current_target(self):
        return GPUTarget("cuda", self.gpu.capability, 32)

    def get_current_device(self):
        return self.gpu.number

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_benchmarker(self):
        raise NotImplementedError


class _Utilities:
    def __init__(self, gpu: EmulatedGPU):
        self.gpu = gpu

    def get_device_properties(self, device: int) -> dict:
        return {"max_shared_mem": self.gpu.device.shared_memory}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int):
        text = binary.decode()
        if self.gpu.edit is not None:
            text = self.gpu.edit(text)
        # The module, which must not be None, the function, registers, spills, and the most threads of a program.
        return text, Code(parse(text)), 0, 0, 1024


def _as_word(number: int | float) -> int:
    """Return a number as a kernel's parameter holds it: a float as the bits of its float32."""
    return int.from_bytes(struct.pack("<f", number), "little") if isinstance(number, float) else int(number)


class _Launcher:
    """Called by Triton with the grid, the function that `load_binary` returned, and all arguments of the kernel."""

    def __init__(self, source, metadata):
        self.metadata = metadata
        self.names = source.fn.arg_names
        self.signature = list(source.signature.items())

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter_hook, exit_hook, *arguments):
        gpu = triton.runtime.driver.active.gpu
        given = [
            (name, value) for (name, kind), value in zip(self.signature, arguments, strict=True) if kind != "constexpr"
        ]
        if self.metadata.launch_cooperative_grid and x * y * z > gpu.device.processors:
            raise RuntimeError(f"too many blocks in cooperative launch: {x * y * z} of {gpu.device.processors}")
        tensors = {name: value for name, value in given if isinstance(value, torch.Tensor)}
        grid = Grid(
            function, (x, y, z), self.metadata.shared, self.metadata.launch_cooperative_grid,
            hash((gpu.seed, len(gpu.launches))), tensors,
        )  # fmt: skip
        # The last two are scratch memory, which these kernels do not ask for.
        assert not self.metadata.global_scratch_size and not self.metadata.profile_scratch_size
        values = [grid.memory.addresses.get(name, 0) if name in tensors else _as_word(value) for name, value in given]
        parameters = [name for name, _ in function.kernel.parameters]
        assert len(parameters) == len(values) + 2, (parameters, given)
        grid.parameters = dict(zip(parameters, [*values, 0, 0], strict=True))
        gpu.launches.append(function.kernel.name)
        gpu.instructions += grid.run(gpu.limit)
