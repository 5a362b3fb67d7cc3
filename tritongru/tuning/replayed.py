"""What a step of the resident kernels takes by the replay of their machine code, data/replayed.csv: estimates.

Not measured on any GPU: they say which of two kernels is faster, and what to expect of the other where a time of it was
published. `python -m tritongru.tools.replay.residents` writes the file.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path

PATH = Path(__file__).parents[1] / "data" / "replayed.csv"
# Up to so many units torch runs cuDNN's own persistent GRU, inference and training.
# Source: aten/src/ATen/native/cudnn/RNN.cpp, use_rnn_persist_small_h.
CUDNN_UNITS = {False: 192, True: 128}
# us of a forward step of it with 128 units and one row, float32, on an H20; none is published of its backward step,
# which is not faster, so that both kernels are held to this one.
# Source: github.com/flagos-ai/FlagGems, pull request 6002: 0.371 ms for 512 steps.
CUDNN_STEP = 0.72


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    with PATH.open(encoding="utf-8", newline="") as file:
        return tuple(row for row in csv.DictReader(file) if not row["feature"])


def replayed_step(kernel: str, dtype: str, units: int, tiling: str) -> float | None:
    """Return us of a step of one batch tile without features, on an H100; None where none like it was replayed.

    Args:
        kernel: "forward" or "backward". dtype: "float32", "float16" or "bfloat16". tiling: as `str` gives it.
    """
    size = "fp32" if dtype == "float32" else "bf16"
    for row in sorted(_rows(), key=lambda row: int(row["units"])):
        is_near = units <= int(row["units"]) <= 2 * units and units % 16 == 0
        if is_near and (row["kernel"], row["dtype"], row["tiling"]) == (kernel, size, tiling):
            return float(row["microseconds"])
    return None
