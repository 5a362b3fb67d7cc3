"""What the replay knows of the hardware beside the control codes: latencies and rates, each with its source.

None of these is measured on a machine of ours. Where one is measured, `replace(HOPPER, name=value)` and its source
here.
"""

from __future__ import annotations

from dataclasses import dataclass

_PUBLISHED = "estimate, of the size that published tests of Hopper give (arXiv 2402.13499)"
_ESTIMATE = "estimate"


@dataclass(frozen=True)
class Latencies:
    """Cycles of one multiprocessor's clock, and bytes a cycle.

    Attributes:
        cache: second-level cache, there and back. fence: `membar.gpu` with stores under way.
        lds, ldsm: shared memory. sts: until a store's registers are free. mufu, shuffle, special, other: of an
            instruction of variable latency. barrier: from the last warp's arrival on. source_read: until registers that
            a store to memory reads are free.
        mufu_every, product_every: cycles in which a quarter of the multiprocessor starts no second one.
        cache_rate: bytes a cycle between the second-level cache and one multiprocessor.
        shared_rate: bytes a cycle of shared memory.
    """

    cache: float = 273
    fence: float = 600
    lds: float = 29
    ldsm: float = 33
    sts: float = 14
    mufu: float = 23
    shuffle: float = 24
    special: float = 30
    other: float = 20
    barrier: float = 20
    source_read: float = 12
    mufu_every: float = 8
    product_every: float = 6
    cache_rate: float = 64
    shared_rate: float = 128


SOURCES = {
    "cache": _PUBLISHED, "lds": _PUBLISHED, "ldsm": _PUBLISHED, "fence": _ESTIMATE, "sts": _ESTIMATE, "mufu": _ESTIMATE,
    "shuffle": _ESTIMATE, "special": _ESTIMATE, "other": _ESTIMATE, "barrier": _ESTIMATE, "source_read": _ESTIMATE,
    "mufu_every": "16 special functions a cycle and multiprocessor: CUDA C++ Programming Guide, arithmetic throughput",
    "product_every": "the assembler's own stall count between independent products, in the code of these kernels",
    "cache_rate": _ESTIMATE,
    "shared_rate": "32 banks of 4 bytes: CUDA C++ Programming Guide, shared memory",
}  # fmt: skip

HOPPER = Latencies()
