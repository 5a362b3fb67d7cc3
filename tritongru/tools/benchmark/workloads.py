"""The named workloads of the benchmark, in named sets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..options import MOST_ROWS, MOST_STEPS, MOST_UNITS


@dataclass(frozen=True)
class Workload:
    """One kind of call.

    Attributes:
        time, batch, input_size, units: T, B, I, U.
        lengths: rows of random length between a tenth of T and T, so about half of the steps are padding.
        resets: the state starts anew at random, once in 32 steps on average.
        recurrent_dropout: one mask of units for the call, keep rate 0.8.
        reset_after, activation: as in `tritongru.gru`.
        why: what the workload stands for.
    """

    name: str
    time: int
    batch: int
    input_size: int
    units: int
    lengths: bool = False
    resets: bool = False
    recurrent_dropout: bool = False
    reset_after: bool = True
    activation: str = "tanh"
    why: str = ""

    @property
    def features(self) -> str:
        """What the call has beyond `torch.nn.GRU`, in words; empty without."""
        found = [name for name in ("lengths", "resets", "recurrent_dropout") if getattr(self, name)]
        found += [] if self.reset_after else ["reset_after=False"]
        found += [] if self.activation == "tanh" else [f"activation={self.activation}"]
        return " ".join(found)

    def __str__(self) -> str:
        sizes = f"T{self.time} B{self.batch} I{self.input_size} U{self.units}"
        return f"{self.name}: {sizes} {self.features}".rstrip()


NAMED = (
    Workload(
        "speech-enhancement", 400, 16, 257, 256, why="4 s of speech in frames of 10 ms, a magnitude spectrum each"
    ),
    Workload("keyword-spotting", 98, 64, 40, 128, why="1 s of sound, 40 mel bands"),
    Workload("forecasting", 168, 64, 8, 64, why="a week of hourly values"),
    Workload("recurrent-rl", 128, 32, 64, 128, resets=True, why="rollouts with episodes that end inside"),
    Workload("language-model", 35, 20, 650, 650, why="the classic medium word model, Zaremba et al. 2014"),
    Workload("long-sequence", 4096, 4, 32, 128, why="a long signal, few rows"),
)

_CPU_SIZES = (
    (100, 32, 64, 128), (200, 64, 256, 256), (50, 16, 512, 512),
    (128, 1, 128, 256), (500, 64, 64, 64), (1000, 1, 40, 64), (16, 1, 64, 128),
)  # fmt: skip
CPU = tuple(Workload("cpu", T, B, I, U, why="sizes that are common on CPUs") for T, B, I, U in _CPU_SIZES)

SMALL = tuple(
    Workload("small", T, B, U, U, why="calls in which what stands before the computation counts")
    for T in (1, 8, 16)
    for B in (1, 16)
    for U in (64, 128, 256)
)


def with_features(time: int, batch: int, input_size: int, units: int, prefix: str = "") -> tuple[Workload, ...]:
    """Return one workload for each feature that torch.nn.GRU lacks, or has only for packed sequences."""
    plain = Workload("", time, batch, input_size, units, why="what torch.nn.GRU lacks, one thing at a time")
    return (
        replace(plain, name=f"{prefix}lengths", lengths=True),
        replace(plain, name=f"{prefix}recurrent-dropout", recurrent_dropout=True),
        replace(plain, name=f"{prefix}resets", resets=True),
        replace(plain, name=f"{prefix}reset-before", reset_after=False),
        replace(plain, name=f"{prefix}activation", activation="softsign"),
    )


FEATURES = with_features(100, 32, 64, 128)
QUICK = (
    replace(NAMED[1], time=50, batch=16),
    replace(NAMED[3], time=50, batch=16),
    replace(CPU[5], time=250),
    replace(FEATURES[0], time=50, batch=16),
    replace(FEATURES[1], time=50, batch=16),
)
TINY = (
    Workload("tiny", 3, 2, 4, 5),
    Workload("tiny", 4, 3, 2, 16, lengths=True, resets=True, recurrent_dropout=True, reset_after=False),
)

GPU_UNITS, GPU_BATCHES, GPU_TIME = (512, 256, 1024, 768, 2048), (16, 64, 1, 128, 8), 512


def gpu_grid() -> tuple[Workload, ...]:
    """Return the grid of issue and documentation, the cells that say most first: each row ends a coarser grid."""
    cells = [(U, B) for U in GPU_UNITS for B in GPU_BATCHES]
    # A cell matters the more the earlier its units and its batch stand in their lists.
    cells.sort(key=lambda cell: GPU_UNITS.index(cell[0]) + GPU_BATCHES.index(cell[1]))
    return tuple(Workload("gpu-grid", GPU_TIME, B, U, U, why="one layer of a stack") for U, B in cells)


GPU_SMALL = tuple(
    Workload("gpu-small", GPU_TIME, B, U, U, why="sizes for which cuDNN has a persistent kernel")
    for U in (128, 64, 192)
    for B in (16, 128, 1, 512)
)
GPU_PACKED = tuple(
    Workload("gpu-packed", 1000, 32, U, U, lengths=True, why="sequences of different lengths") for U in (256, 128, 512)
)
GPU_FEATURES = tuple(w for U in (256, 512) for w in with_features(GPU_TIME, 32, U, U, "gpu-"))

SETS: dict[str, tuple[Workload, ...]] = {
    "named": NAMED,
    "cpu": CPU,
    "small": SMALL,
    "features": FEATURES,
    "quick": QUICK,
    "tiny": TINY,
    "gpu-grid": gpu_grid(),
    "gpu-small": GPU_SMALL,
    "gpu-packed": GPU_PACKED,
    "gpu-features": GPU_FEATURES,
}


def select(names: list[str]) -> list[Workload]:
    """Return the workloads of the named sets and single workloads, each once, in that order.

    Raises:
        ValueError: a name is neither a set nor a workload.

    >>> [w.name for w in select(["forecasting", "recurrent-rl"])]
    ['forecasting', 'recurrent-rl']
    """
    single = {w.name: (w,) for w in (*NAMED, *FEATURES)}
    chosen: dict[Workload, None] = {}
    for name in names:
        if name not in SETS and name not in single:
            raise ValueError(f"`workloads` must be among {', '.join([*SETS, *single])}, got {name!r}")
        chosen |= dict.fromkeys(SETS.get(name) or single[name])
    return list(chosen)


def parse_size(text: str) -> Workload:
    """Return a plain workload of sizes "T,B,I,U".

    Raises:
        ValueError: not four whole numbers, each from 1 to the most that the command line takes.

    >>> str(parse_size("100,32,64,128"))
    'given: T100 B32 I64 U128'
    """
    try:
        time, batch, input_size, units = sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`sizes` must be T,B,I,U, got {text!r}") from None
    most = (MOST_STEPS, MOST_ROWS, MOST_UNITS, MOST_UNITS)
    if not all(1 <= size <= limit for size, limit in zip(sizes, most, strict=True)):
        raise ValueError(f"`sizes` must be whole numbers from 1 to T,B,I,U = {','.join(map(str, most))}, got {text!r}")
    return Workload("given", time, batch, input_size, units)
