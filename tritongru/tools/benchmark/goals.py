"""The goals this project set itself for speed, and what the committed tables say about each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contenders import FORWARD, INFERENCE, TRAINING
from .results import Cell, Result

FEATURES = ("lengths", "recurrent_dropout", "resets", "reset_after=False")


@dataclass(frozen=True)
class Goal:
    """One goal: which cells it is about, a number of each, and a bound from below of their mean and their least.

    Attributes:
        value: from a cell to the number that shall be large, None where the cell does not hold it.
        mean, least: what the geometric mean and the smallest number shall reach; None where nothing is asked.
    """

    text: str
    kind: str
    applies: Callable[[Result], bool]
    value: Callable[[Cell], float | None]
    mean: float | None = None
    least: float | None = None


def times_as_fast(*others: str, ours: str = "auto") -> Callable[[Cell], float | None]:
    """Return the quotient of the time of the fastest of `others` and that of `ours`, in the same run."""

    def value(cell: Cell) -> float | None:
        mine, theirs = cell.get(ours), [row.p50_ms for name in others if (row := cell.get(name)) and row.p50_ms]
        if mine is None or mine.p50_ms is None or not theirs:
            return None
        if others == ("nn.GRU",):
            return mine.ratio_to_nn_gru
        return min(theirs) / mine.p50_ms

    return value


def times_as_fast_where_triton(cell: Cell) -> float | None:
    """Return the quotient to torch.nn.GRU where auto took triton."""
    ours = cell.get("auto")
    return times_as_fast("nn.GRU")(cell) if ours is not None and "triton" in ours.notes else None


def within(bound_us: float) -> Callable[[Cell], float | None]:
    """Return how far below `bound_us` microseconds a step of auto stays: 1 is just met."""

    def value(cell: Cell) -> float | None:
        ours = cell.get("auto")
        return None if ours is None or ours.us_per_step is None else bound_us / ours.us_per_step

    return value


def _sized(workload: str, direction: str, dtypes: Sequence[str] = ("float32",), units: int | None = None):
    def applies(row: Result) -> bool:
        return (
            row.workload == workload and row.direction == direction and row.dtype in dtypes and units in (None, row.U)
        )

    return applies


def _on_cpu(direction: str, batches: range, units: range = range(1, 1 << 30)):
    def applies(row: Result) -> bool:
        is_plain = row.workload in ("cpu", "long-sequence") and not row.features and row.dtype == "float32"
        return is_plain and row.direction == direction and row.B in batches and row.U in units

    return applies


def _small(*times: int):
    def applies(row: Result) -> bool:
        return row.workload == "small" and row.T in times

    return applies


def _featured(kind: str, features: Sequence[str] = FEATURES):
    def applies(row: Result) -> bool:
        return (
            row.features in features
            and row.direction == TRAINING
            and row.workload.startswith("gpu-") == (kind == "cuda")
        )

    return applies


HALF = ("bfloat16", "float16")
RUNTIMES = ("onnxruntime", "openvino", "jax")
ONE_ROW, MANY_ROWS = range(1, 2), range(16, 1 << 30)
GOALS = (
    Goal("CPU, inference, one row: 8 times torch.nn.GRU", "cpu", _on_cpu(INFERENCE, ONE_ROW), times_as_fast("nn.GRU"),
         least=8.0),
    Goal("the same: never behind onnxruntime, OpenVINO or JAX", "cpu", _on_cpu(INFERENCE, ONE_ROW),
         times_as_fast(*RUNTIMES), least=1.0),
    Goal("CPU, inference, B >= 16: 2 times torch.nn.GRU on average, never below 1.2", "cpu",
         _on_cpu(INFERENCE, MANY_ROWS), times_as_fast("nn.GRU"), mean=2.0, least=1.2),
    Goal("the same, U <= 256: ahead of the fastest of onnxruntime, OpenVINO and JAX", "cpu",
         _on_cpu(INFERENCE, MANY_ROWS, range(1, 257)), times_as_fast(*RUNTIMES), least=1.0),
    Goal("the same, U > 256: within 10 % of it", "cpu", _on_cpu(INFERENCE, MANY_ROWS, range(257, 1 << 30)),
         times_as_fast(*RUNTIMES), least=0.9),
    Goal("CPU, training, one row: 10 times torch.nn.GRU", "cpu", _on_cpu(TRAINING, ONE_ROW), times_as_fast("nn.GRU"),
         least=10.0),
    Goal("the same: ahead of JAX", "cpu", _on_cpu(TRAINING, ONE_ROW), times_as_fast("jax"), least=1.0),
    Goal("CPU, training, B >= 16: 2 times torch.nn.GRU on average, never below 1.2", "cpu",
         _on_cpu(TRAINING, MANY_ROWS), times_as_fast("nn.GRU"), mean=2.0, least=1.2),
    Goal("CPU, one step: Stream.step takes at most 0.6 times as long as torch.nn.GRUCell", "cpu", _small(1),
         times_as_fast("nn.GRUCell", ours="Stream.step"), least=1 / 0.6),
    Goal("the same, backend=\"eager\": at most 1.5 times", "cpu", _small(1),
         times_as_fast("nn.GRUCell", ours="Stream.step-eager"), least=1 / 1.5),
    Goal("CPU, T = 1: compat.GRU takes at most 0.6 times as long as torch.nn.GRU", "cpu", _small(1),
         times_as_fast("nn.GRU", ours="compat.GRU"), least=1 / 0.6),
    Goal("the same: tritongru.GRU at most 1.6 times", "cpu", _small(1),
         times_as_fast("nn.GRU", ours="tritongru.GRU"), least=1 / 1.6),
    *(
        Goal(f"CPU, T = 8 and 16: {name} at most 1.1 times as long as torch.nn.GRU", "cpu", _small(8, 16),
             times_as_fast("nn.GRU", ours=name), least=1 / 1.1)
        for name in ("compat.GRU", "tritongru.GRU")
    ),
    Goal("CPU, training with masks, resets, recurrent dropout, reset_after=False: 4 times the reference", "cpu",
         _featured("cpu"), times_as_fast("reference"), least=4.0),
    Goal("the same: 3 times Keras 3 on its torch backend", "cpu", _featured("cpu"), times_as_fast("keras"), least=3.0),
    Goal("GPU, training, half precision, U 256 to 2048, B 1 to 128: 3 times torch.nn.GRU on average", "cuda",
         _sized("gpu-grid", TRAINING, HALF), times_as_fast("nn.GRU"), mean=3.0),
    Goal("the same: never below torch.nn.GRU where auto takes triton", "cuda", _sized("gpu-grid", TRAINING, HALF),
         times_as_fast_where_triton, least=1.0),
    Goal("GPU, training, T = 1000: 20 times packed sequences", "cuda", _featured("cuda", ("lengths",)),
         times_as_fast("nn.GRU-packed"), least=20.0),
    Goal("GPU, training with recurrent dropout, resets, reset_after=False or another activation: 20 times the loop",
         "cuda", _featured("cuda", (*FEATURES[1:], "activation=softsign")), times_as_fast("loop"), least=20.0),
    *(
        Goal(f"GPU, forward: at most {bound} us a step at U = {units}", "cuda",
             _sized(workload, FORWARD, HALF, units), within(bound), least=1.0)
        for units, bound, workload in ((128, 0.7, "gpu-small"), (256, 1.4, "gpu-grid"), (512, 1.8, "gpu-grid"),
                                       (1024, 2.3, "gpu-grid"))
    ),
)  # fmt: skip


def judge(goal: Goal, cells: Sequence[Cell]) -> str:
    """Return "met" or "missed" and the numbers that say so, or "not measured"."""
    values = [
        number
        for cell in cells
        if any(row.kind == goal.kind and goal.applies(row) for row in cell.values())
        and (number := goal.value(cell)) is not None
    ]
    if not values:
        return "not measured"
    mean = geometric_mean(values)
    met = (goal.mean is None or mean >= goal.mean) and (goal.least is None or min(values) >= goal.least)
    return f"{'met' if met else 'missed'}: mean {mean:.2f}, least {min(values):.2f}, of {len(values)}"


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean.

    >>> round(geometric_mean([1.0, 4.0]), 6)
    2.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))
