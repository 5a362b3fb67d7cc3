"""`fit` and `predict` of Keras 3 with `keras.layers.GRU` and with `tritongru.keras3.GRU`, side by side.

    KERAS_BACKEND=torch python bench/keras3.py

Takes about five minutes on two quiet cores. Adds rows to bench/results/keras3.csv, one per model and job: medians in
milliseconds of an epoch, which both models run in turn. Exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Keras settles on a backend when it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from tritongru.keras3 import GRU  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402

TABLE = ROOT / "bench" / "results" / "keras3.csv"
SERIES, I, U, BATCH = 256, 16, 64, 32


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: for the table. T: steps. mask: whether some steps are masked, to random lengths. wrapped: whether the
            layer is in a `Bidirectional`. arguments: of the layer. fit, predict: how many times faster it shall be.
    """

    name: str
    T: int = 50
    mask: bool = False
    wrapped: bool = False
    arguments: dict = field(default_factory=dict)
    fit: float | None = None
    predict: float | None = None


CASES = (
    Case("plain", fit=2),
    Case("mask", mask=True, fit=3, predict=5),
    Case("recurrent dropout", arguments={"recurrent_dropout": 0.2}, fit=3),
    Case("reset_after=False", arguments={"reset_after": False}, fit=3),
    Case("mask, reset_after=False", mask=True, arguments={"reset_after": False}, fit=3, predict=5),
    Case("mask, dropout, recurrent dropout", mask=True, arguments={"dropout": 0.2, "recurrent_dropout": 0.2},
         fit=3, predict=5),
    Case("mask, hard_sigmoid", mask=True, arguments={"recurrent_activation": "hard_sigmoid"}, fit=3, predict=5),
    Case("mask, both directions", mask=True, wrapped=True, fit=3, predict=5),
    *(Case("few steps", T=steps) for steps in (1, 2, 3, 4, 8, 16)),
    *(Case("few steps, mask", T=steps, mask=True) for steps in (1, 4, 16)),
)  # fmt: skip
FIELDS = (
    "run", "date", "device", "torch", "keras", "python", "tritongru", "threads", "case", "job", "T", "B", "I", "U",
    "keras_ms", "tritongru_ms", "ratio", "goal", "repeats",
)  # fmt: skip


def draw(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (SERIES,T,I), zero where they are to be masked, and targets (SERIES,1)."""
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(SERIES, case.T, I)).astype("float32")
    if case.mask:
        lengths = numbers.integers(max(1, case.T // 4), case.T + 1, size=SERIES)
        x[np.arange(case.T) >= lengths[:, None]] = 0
    return x, numbers.normal(size=(SERIES, 1)).astype("float32")


def make(case: Case, cls: type) -> keras.Model:
    """Return a compiled model around one layer of `cls`."""
    keras.utils.set_random_seed(0)
    layer = cls(U, **case.arguments)
    layers = [keras.layers.Input((case.T, I)), *([keras.layers.Masking()] if case.mask else [])]
    layers += [keras.layers.Bidirectional(layer) if case.wrapped else layer, keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    return model


def measure(case: Case, job: str, repeats: int) -> tuple[float, float]:
    """Return the median milliseconds of an epoch with Keras's layer and with ours, taken in turn."""
    x, y = draw(case)
    models = [make(case, keras.layers.GRU), make(case, GRU)]

    def run(model: keras.Model) -> float:
        begin = time.perf_counter()
        if job == "fit":
            model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
        else:
            model.predict(x, batch_size=BATCH, verbose=0)
        return 1e3 * (time.perf_counter() - begin)

    for model in models:
        run(model)
    rounds = [[run(model) for model in models] for _ in range(repeats)]
    theirs, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
    return theirs, ours


def main() -> int:
    """Measure every case, add the rows to the table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table the rows are added to")
    parser.add_argument("--repeats", type=int, default=9, help="epochs of each model, in turn")
    options = parser.parse_args()
    where = conditions(torch.device("cpu")) | {"keras": keras.__version__}
    rows, missed = [], 0
    for case in CASES:
        for job in ("fit", "predict"):
            theirs, ours = measure(case, job, options.repeats)
            ratio, goal = theirs / ours, getattr(case, job)
            missed += goal is not None and ratio < goal
            values = where | {
                "case": case.name, "job": job, "T": case.T, "B": BATCH, "I": I, "U": U, "keras_ms": f"{theirs:.4g}",
                "tritongru_ms": f"{ours:.4g}", "ratio": f"{ratio:.3g}", "goal": goal or "", "repeats": options.repeats,
            }  # fmt: skip
            rows.append({name: values[name] for name in FIELDS})
            print(f"{case.name:34} {job:8} T={case.T:<3} {theirs:8.1f} {ours:8.1f} ms  {ratio:5.2f} x  goal {goal}")
    is_new = not options.csv.exists()
    with options.csv.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
