"""Read groups, attributes and arrays of an HDF5 file that anyone may have made, through h5py.

libhdf5 believes what a file says of sizes and allocates first. So each size is held against the file's own before a
read; links and filters that lead out of the file are refused.

Source: the HDF5 file format specification, III.E "Global Heap" and IV.A.2.m "The Attribute Message".
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .untrusted import MAX_FREE_BYTES, MAX_RATIO

# deflate, shuffle and fletcher32 are built into libhdf5; another filter could be a plugin, loaded from a library.
_DEFLATE, _FILTERS = 1, {1, 2, 3}
_VARIABLE = 9  # the class of a datatype whose values have a length each
_REFERENCE = 16  # bytes of a string's place in the global heap: length (4), address (8), index (4)


class Source:
    """One open HDF5 file and its bytes.

    Args:
        root: the h5py.File. data: all bytes of the file.
    """

    def __init__(self, root: Any, data: bytes | mmap.mmap) -> None:
        self.root, self.data = root, data
        self.limit = MAX_FREE_BYTES + MAX_RATIO * len(data)

    def child(self, group: Any, path: str) -> Any:
        """Return what lies at `path` under `group`; ValueError where a link on the way is not a plain one."""
        # Step by step, so that no link on the way leads out of the file or round in a circle.
        import h5py

        for part in path.strip("/").split("/"):
            if not isinstance(group, h5py.Group):
                raise ValueError(f"{group.name!r} is an array, expected a group on the way to {path!r}")
            link = group.get(part, getlink=True)
            if link is None:
                raise ValueError(f"{group.name.rstrip('/')}/{part} is missing")
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{group.name.rstrip('/')}/{part} is a link, which a Keras file has not")
            group = group[part]
        return group

    def is_array(self, group: Any, name: str) -> bool:
        """Return whether `name` in `group` is an array and not a group."""
        import h5py

        return isinstance(self.child(group, name), h5py.Dataset)

    def attribute(self, group: Any, name: str) -> Any:
        """Return the attribute `name` of `group`; ValueError where it claims more bytes than the file could hold."""
        import h5py

        attribute = h5py.h5a.open(group.id, name.encode())
        count, kind = attribute.get_space().get_simple_extent_npoints(), attribute.get_type()
        if count == 0:
            # Keras writes the names of no weights as an empty array of floats.
            return np.array([], dtype="S1")
        size = max(count * kind.get_size(), attribute.get_storage_size())
        if size > self.limit:
            raise ValueError(f"the attribute {name!r} claims {size} bytes in a file of {len(self.data)}")
        if kind.get_class() == h5py.h5t.VLEN or (kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()):
            self._check_strings(name, count)
        elif kind.get_class() != h5py.h5t.STRING:
            raise ValueError(f"the attribute {name!r} is of type {kind.dtype}, expected strings")
        return group.attrs[name]

    def _check_strings(self, name: str, count: int) -> None:
        """Raise ValueError where strings of an attribute called `name` claim more bytes than the file could hold."""
        # Which of the messages of that name libhdf5 will read is not known here, so all are held to the limit.
        counts = set()
        for start, own in self._find_strings(name):
            counts.add(own)
            lengths = np.frombuffer(self.data[start : start + own * _REFERENCE], "<u4")[:: _REFERENCE // 4]
            claimed = int(lengths.sum(dtype=np.uint64))
            if claimed > self.limit:
                raise ValueError(
                    f"the strings of the attribute {name!r} claim {claimed} bytes in a file of {len(self.data)}"
                )
        if count not in counts:
            raise ValueError(f"the attribute {name!r} is not stored as Keras stores it")

    def _find_strings(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield where the references of each message of variable strings called `name` begin, and their number."""
        needle = name.encode() + b"\0"
        place = self.data.find(needle)
        while place >= 0:
            for version, header in ((1, "<BxHHH"), (2, "<BxHHH"), (3, "<BxHHHx")):
                begin = place - struct.calcsize(header)
                found, *sizes = struct.unpack(header, self.data[begin:place]) if begin >= 0 else (0, 0)
                if found != version or sizes[0] != len(needle):
                    continue
                # The first version fills each of the three parts up to a multiple of 8.
                padded = [(n + 7) // 8 * 8 if version == 1 else n for n in sizes]
                kind = place + padded[0]
                space, start = kind + padded[1], kind + padded[1] + padded[2]
                count = self._count_values(self.data[space:start])
                if count and self.data[kind] & 15 == _VARIABLE and count * _REFERENCE <= len(self.data) - start:
                    yield start, count
            place = self.data.find(needle, place + 1)

    @staticmethod
    def _count_values(space: bytes) -> int:
        """Return the number of values of a dataspace message."""
        if len(space) < 4 or space[0] not in (1, 2):
            return 0
        begin = 8 if space[0] == 1 else 4
        sizes = space[begin : begin + 8 * space[1]]
        return math.prod(struct.unpack(f"<{space[1]}Q", sizes)) if len(sizes) == 8 * space[1] else 0

    def array(self, dataset: Any) -> np.ndarray | Tensor:
        """Return the values of an array of floats, as a tensor where they are bfloat16, which NumPy has not.

        Raises:
            ValueError: another dtype, values outside of the file, a filter that is not built in, or more bytes than
                the file could hold.
        """
        name = dataset.name
        is_bfloat16 = dataset.dtype == np.dtype("V2") and self._is_marked(dataset, "bfloat16")
        if not is_bfloat16 and (dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8):
            raise ValueError(f"the array {name!r} has dtype {dataset.dtype}, expected a float of at most 64 bits")
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"the array {name!r} keeps its values in another file")
        claimed = max(dataset.nbytes, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
        if claimed > self.limit:
            raise ValueError(f"the array {name!r} claims {claimed} bytes in a file of {len(self.data)}")
        if dataset.chunks is not None:
            self._check_chunks(dataset)
        if is_bfloat16:
            return torch.from_numpy(dataset[()].view("<i2").astype(np.int16)).view(torch.bfloat16)
        return np.asarray(dataset[()], dtype=dataset.dtype.newbyteorder("="))

    def _is_marked(self, dataset: Any, dtype: str) -> bool:
        """Return whether an array has the attribute by which Keras 3 tells a dtype that HDF5 has not."""
        return "dtype" in dataset.attrs and to_text(self.attribute(dataset, "dtype")) == dtype

    def _check_chunks(self, dataset: Any) -> None:
        settings = dataset.id.get_create_plist()
        filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
        if not set(filters) <= _FILTERS:
            raise ValueError(f"the array {dataset.name!r} is stored with filters {filters}, known: {sorted(_FILTERS)}")
        if _DEFLATE not in filters:
            return
        allowed = math.prod(dataset.chunks) * dataset.dtype.itemsize
        for index in range(dataset.id.get_num_chunks()):
            chunk = dataset.id.get_chunk_info(index)
            if chunk.size > len(self.data):
                raise ValueError(f"a chunk of the array {dataset.name!r} claims {chunk.size} bytes")
            _, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
            # libhdf5 doubles its buffer for as long as the stream goes on. Fletcher32 adds four bytes.
            if len(zlib.decompressobj().decompress(packed, allowed + 5)) > allowed + 4:
                raise ValueError(f"a chunk of the array {dataset.name!r} unpacks to more than its {allowed} bytes")


def to_text(value: Any) -> str:
    """Return the text of an attribute's string."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
