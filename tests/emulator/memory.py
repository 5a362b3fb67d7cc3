"""Memories with bounds: the buffers behind a kernel's pointers, and the shared memory of a program.

A buffer is what the tensors that share a storage span of it.

An address of global memory is (number of the buffer, from 1) * 2^40 + place in it, so that no arithmetic leads from one
buffer into another. An access outside of every buffer, one that is not aligned, and one to what nobody has written yet
are errors. What "not written yet" means: in shared memory, no store so far; in a buffer, the value that
`torch.use_deterministic_algorithms` fills uninitialised memory with, unless the kernel has written it.
"""

from __future__ import annotations

import numpy as np
import torch

from .ptx import SHARED_BASE
from .races import Actor, Clocks, Shadow

_BUFFER_BITS = 40
_NUMBERS = np.arange(64)


class AccessError(AssertionError):
    """An access outside of every buffer, not aligned, of a wrong width, or to memory that was never written."""


class Memory:
    """Bytes from `base` on, with a shadow of one entry per `granule` bytes."""

    def __init__(
        self, name: str, base: int, data: np.ndarray, granule: int, shadow: Shadow, unwritten: int | None,
        extent: tuple[int, int] | None = None,
    ):  # fmt: skip
        """`unwritten`: the bits of a granule that nobody wrote; None: there are no such bits, only the shadow knows.

        Accesses must lie in `extent`, two places in `data`, where it is given.
        """
        self.begin, self.end = extent or (0, data.size)
        self.name, self.base, self.granule, self.shadow, self.unwritten = name, base, granule, shadow, unwritten
        self.views = {
            width: data[: data.size // width * width].view(f"u{width}") for width in (1, 2, 4, 8) if width >= granule
        }
        self.in_flight: np.ndarray | None = None  # granules that an asynchronous copy will write
        # Granules stored with no `fence.proxy.async` since; None where no asynchronous product reads them.
        self.closed: np.ndarray | None = None

    def place(self, addresses: np.ndarray, width: int, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, per address, the indices of `count` elements of `width` bytes, and those of their granules."""
        offsets = addresses.astype(np.int64)
        offsets -= self.base
        whole = width * count
        if np.count_nonzero(offsets & (whole - 1)):
            raise AccessError(f"{self._instruction(step)} is not aligned to {whole} bytes in {self.name}")
        beyond = (offsets < self.begin) | (offsets > self.end - whole)
        if np.count_nonzero(beyond):
            place, size = offsets[beyond][0] - self.begin, self.end - self.begin
            raise AccessError(
                f"{self._instruction(step)} accesses {whole} bytes at {place} of {self.name}, which has {size}"
            )
        if width < self.granule:
            raise AccessError(f"{self._instruction(step)} tears an element of {self.granule} bytes of {self.name}")
        elements = _count_on(offsets // width, count)
        if width == self.granule:
            return elements, elements.ravel()
        return elements, _count_on(offsets // self.granule, whole // self.granule).ravel()

    def load(
        self, addresses: np.ndarray, lanes: np.ndarray, width: int, count: int, actor: Actor, step: int,
        strong: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Return what `lanes` load from `addresses`: (lanes, count) unsigned integers of `width` bytes."""
        elements, granules = self.place(addresses, width, count, step)
        self._refuse_in_flight(granules, step)
        written = self.shadow.read(granules, _spread(lanes, granules), actor, step, width if strong else 0)
        values = self.views[width][elements]
        missing = written < 0
        if self.unwritten is not None and np.count_nonzero(missing):
            missing &= (
                values.ravel() if width == self.granule else self.views[self.granule][granules]
            ) == self.unwritten
        if np.count_nonzero(missing):
            raise AccessError(
                f"{self._instruction(step)} reads granule {granules[missing.argmax()]} of {self.name}, never written"
            )
        return values

    def store(
        self, addresses: np.ndarray, lanes: np.ndarray, values: np.ndarray, width: int, actor: Actor, step: int,
        strong: bool = False,
    ) -> None:  # fmt: skip
        """Store `values` (lanes, count), unsigned integers of `width` bytes."""
        elements, granules = self.place(addresses, width, values.shape[1], step)
        self._refuse_in_flight(granules, step)
        view, narrow = self.views[width], self.views[self.granule]

        def find_same() -> np.ndarray:
            before = narrow[granules]
            view[elements] = values
            return narrow[granules] == before

        self.shadow.write(granules, _spread(lanes, granules), actor, step, width if strong else 0, find_same)
        view[elements] = values
        if self.closed is not None:
            self.closed[granules] = True
        if np.count_nonzero(view[elements] != values):
            raise AccessError(f"{self._instruction(step)}: lanes store different values at one address of {self.name}")

    def begin_copy(
        self, addresses: np.ndarray, lanes: np.ndarray, width: int, count: int, actor: Actor, step: int
    ) -> tuple:
        """Note that an asynchronous copy of `lanes` will write; return what `end_copy` wants to know."""
        elements, granules = self.place(addresses, width, count, step)
        if self.in_flight is None:
            self.in_flight = np.zeros(len(self.shadow.written), bool)
        self._refuse_in_flight(granules, step)
        spread = _spread(lanes, granules)
        self.shadow.write(granules, spread, actor, step, 0)
        self.in_flight[granules] = True
        return elements, granules, spread

    def end_copy(self, places: tuple, values: np.ndarray, width: int, actor: Actor, step: int) -> None:
        """The copy that `begin_copy` began has been waited for: from now on it may be read."""
        elements, granules, lanes = places
        assert self.in_flight is not None
        self.in_flight[granules] = False
        self.shadow.write(granules, lanes, actor, step, 0)
        self.views[width][elements] = values

    def close_to_products(self) -> None:
        """Note from now on which stores asynchronous products do not see yet."""
        self.closed = np.zeros(len(self.shadow.written), bool)

    def open_to_products(self, actor: Actor) -> None:
        """`actor` executes `fence.proxy.async`: products see what it wrote, and what is ordered before it."""
        shadow, places = self.shadow, np.flatnonzero(self.closed)
        writers = shadow.writer[places]
        seen = (writers == actor.number) | (shadow.written[places] < actor.known[writers])
        self.closed[places[seen]] = False  # type: ignore[index]

    def _refuse_in_flight(self, granules: np.ndarray, step: int) -> None:
        if self.in_flight is not None and np.count_nonzero(self.in_flight[granules]):
            raise AccessError(
                f"{self._instruction(step)} accesses bytes of {self.name} under an asynchronous copy that has not been "
                "waited for"
            )

    def _instruction(self, step: int) -> str:
        return str(self.shadow.steps[step])


class GlobalMemory:
    """The storages behind the tensors of one launch, by number."""

    def __init__(self, tensors: dict[str, torch.Tensor], clocks: Clocks, steps: list):
        """`tensors`: by parameter name."""
        self._steps = steps
        self.buffers: list[Memory] = []
        self.addresses: dict[str, int] = {}
        shared: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            shared.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
        for real, names in shared.items():
            same = [tensors[name] for name in names]
            first = same[0]
            narrowest = min(same, key=torch.Tensor.element_size)
            if not first.untyped_storage().nbytes():
                continue
            data = torch.empty(0, dtype=torch.uint8).set_(first.untyped_storage()).numpy()  # type: ignore[arg-type]
            # The low bits are kept: alignment is what the kernel was specialised on.
            base = (len(self.buffers) + 1 << _BUFFER_BITS) + real % 4096
            label, granule = "/".join(names), narrowest.element_size()
            shadow = Shadow(label, data.size // granule, len(clocks.known), steps)
            begins = [tensor.data_ptr() - real for tensor in same]
            ends = [begin + _bytes_spanned(tensor) for begin, tensor in zip(begins, same, strict=True)]
            extent, unwritten = (min(begins), max(ends)), unwritten_bits(narrowest.dtype)
            self.buffers.append(Memory(label, base, data, granule, shadow, unwritten, extent))
            for name, tensor in zip(names, same, strict=True):
                self.addresses[name] = base + tensor.data_ptr() - real
        self.released: dict[int, np.ndarray] = {}  # what the last releases at an address have handed on

    def at(self, addresses: np.ndarray, step: int) -> Memory:
        """Return the buffer that `addresses` lie in."""
        number = int(addresses[0]) >> _BUFFER_BITS
        if not 1 <= number <= len(self.buffers):
            raise AccessError(f"{self._steps[step]} accesses address {int(addresses[0]):#x}, which is in no buffer")
        return self.buffers[number - 1]


def _count_on(first: np.ndarray, count: int) -> np.ndarray:
    """Return (first, count) numbers: `count` from each on."""
    return first[:, None] if count == 1 else first[:, None] + _NUMBERS[:count]


def _spread(lanes: np.ndarray, granules: np.ndarray) -> np.ndarray:
    """Return the lane of each granule."""
    return lanes if len(lanes) == len(granules) else np.repeat(lanes, len(granules) // len(lanes))


def _bytes_spanned(tensor: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def make_shared(size: int, granule: int, warps: int, steps: list) -> Memory:
    """Return the shared memory of one program."""
    data = np.full(-(-size // 8) * 8, 0xFF, np.uint8)
    shadow = Shadow("shared memory", data.size // granule, warps, steps, is_shared=True)
    return Memory("shared memory", SHARED_BASE, data, granule, shadow, None)


def unwritten_bits(dtype: torch.dtype) -> int:
    """Return the bits that an element of uninitialised memory has under `torch.use_deterministic_algorithms`.

    >>> hex(unwritten_bits(torch.bfloat16)), hex(unwritten_bits(torch.int32))
    ('0x7fc0', '0x7fffffff')
    """
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    unsigned = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bits = int(torch.full((1,), value, dtype=dtype).view(unsigned))
    return bits % (1 << 8 * dtype.itemsize)
