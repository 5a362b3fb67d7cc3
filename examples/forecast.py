"""Forecast a temperature one day ahead from records with gaps, against the naive seasonal forecast "as yesterday".

The record of three airports is cut where it has a gap, and then into pieces of at most eight days: series of many
lengths, padded and told apart by `lengths`. After every step a GRU forecasts the next eight (24 hours), as a correction
of the temperatures of the last 24 hours. Training ends on 30 September; the test is the rest of the year.

    python examples/forecast.py --seeds 3

Error: MASE, the mean absolute error over that of the naive forecast on the training part (Hyndman and Koehler 2006,
Another look at measures of forecast accuracy). Data: see data/README.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritongru.compat import GRU

DATA = Path(__file__).parent / "data" / "new_york_weather.npz"
DAY = 8  # steps of three hours
LONGEST = 8 * DAY
FIRST_TEST_HOUR = 24 * 273  # 1 October 2013


@dataclass(frozen=True)
class Series:
    """Pieces of a record, padded with zeros.

    Attributes:
        temperature: (B,T) degrees Celsius. inputs: (B,T,I), scaled. lengths: (B,).
        target: (B,T,DAY), the temperatures of the next steps. known: (B,T,DAY), whether the record has them.
    """

    temperature: Tensor
    inputs: Tensor
    lengths: Tensor
    target: Tensor
    known: Tensor


def cut(values: np.ndarray, hours: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the pieces (values, hours) of one record between its gaps, more than DAY and at most LONGEST long."""
    whole = np.flatnonzero(~np.isnan(values).any(1))
    pieces = []
    for run in np.split(whole, np.flatnonzero(np.diff(whole) > 1) + 1):
        pieces += [run[i : i + LONGEST] for i in range(0, len(run), LONGEST)]
    return [(values[piece], hours[piece]) for piece in pieces if len(piece) > DAY]


def make_series(pieces: list[tuple[np.ndarray, np.ndarray]], mean: np.ndarray, spread: np.ndarray) -> Series:
    """Return the pieces as one padded batch; `mean` and `spread` (I,) scale the inputs."""
    longest = max(len(values) for values, _ in pieces)

    def pad(rows) -> Tensor:
        return torch.stack([F.pad(torch.tensor(r, dtype=torch.float32), (0, 0, 0, longest - len(r))) for r in rows])

    temperature = pad([values[:, :1] for values, _ in pieces])[..., 0]
    angle = [2 * np.pi * hours[:, None] / 24 for _, hours in pieces]
    clock = pad([np.concatenate((np.sin(a), np.cos(a)), 1) for a in angle])
    lengths = torch.tensor([len(values) for values, _ in pieces])
    # target[:, t, k] is the temperature at t + 1 + k
    ahead = torch.arange(longest)[:, None] + 1 + torch.arange(DAY)
    target = F.pad(temperature, (0, DAY)).unfold(1, DAY, 1)[:, 1 : longest + 1]
    known = ahead < lengths[:, None, None]
    known[:, : DAY - 1] = False  # the naive forecast needs a day of history
    inputs = torch.cat((pad([(values - mean) / spread for values, _ in pieces]), clock), -1)
    return Series(temperature, inputs, lengths, target, known)


def load(path: Path = DATA) -> tuple[Series, Series]:
    """Return the training and the test series."""
    record = np.load(path)
    hours, values = record["hours"], record["values"]
    early = hours < FIRST_TEST_HOUR
    mean, spread = (f(values[:, early].reshape(-1, values.shape[-1]), 0) for f in (np.nanmean, np.nanstd))
    parts = []
    for part in (early, ~early):
        pieces = [piece for station in values for piece in cut(station[part], hours[part])]
        parts.append(make_series(pieces, mean, spread))
    return parts[0], parts[1]


def forecast_as_yesterday(series: Series) -> Tensor:
    """Return the naive seasonal forecast (B,T,DAY): the temperatures of the last day, in its order."""
    return F.pad(series.temperature, (DAY - 1, 0)).unfold(1, DAY, 1)


def measure_error(forecast: Tensor, series: Series) -> Tensor:
    """Return the mean absolute error in degrees, over the steps whose answer is known."""
    return ((forecast - series.target).abs() * series.known).sum() / series.known.sum()


class Forecaster(nn.Module):
    """A GRU that corrects the naive forecast."""

    def __init__(self, features: int, units: int):
        super().__init__()
        self.gru, self.head = GRU(features, units, batch_first=True), nn.Linear(units, DAY)

    def forward(self, series: Series) -> Tensor:
        """Return forecasts (B,T,DAY) in degrees."""
        states, _ = self.gru(series.inputs, lengths=series.lengths)
        return forecast_as_yesterday(series) + self.head(states)


def train(training: Series, seed: int, steps: int, units: int = 32, rate: float = 1e-2) -> Forecaster:
    """Return a forecaster trained on all series at once, `steps` times."""
    torch.manual_seed(seed)
    model = Forecaster(training.inputs.shape[-1], units)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        loss = measure_error(model(training), training)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def run(seeds: int = 3, steps: int = 80, units: int = 32) -> dict[str, list[float] | float | int]:
    """Train once per seed and measure on the test series.

    Returns:
        MASE: "naive", and "gru" per seed; "degrees": the mean absolute error of the first; "series", how many.
    """
    training, test = load()
    unit = measure_error(forecast_as_yesterday(training), training)
    naive = measure_error(forecast_as_yesterday(test), test) / unit
    errors = []
    for seed in range(seeds):
        model = train(training, seed, steps, units)
        with torch.no_grad():
            errors.append(float(measure_error(model(test), test) / unit))
    count = len(training.lengths) + len(test.lengths)
    return {"naive": float(naive), "gru": errors, "degrees": errors[0] * float(unit), "series": count}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description="temperature one day ahead, from records with gaps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--units", type=int, default=32)
    options = parser.parse_args()
    result = run(options.seeds, options.steps, options.units)
    errors = torch.tensor(result["gru"])
    print(f"{result['series']} series; MASE on the test months:")
    print(f"  as yesterday   {result['naive']:.3f}")
    print(
        f"  GRU            {errors.mean():.3f} (mean of {len(errors)} seeds, {errors.min():.3f} to {errors.max():.3f})"
    )


if __name__ == "__main__":
    main()
