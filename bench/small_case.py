"""One small call, forward and backward, in one schedule, held to the oracle: what compute-sanitizer looks at.

python bench/small_case.py single | persistent | streamed | steps
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tritongru.backends.triton.scan import use_config
from tritongru.tools.oracle.cases import Case
from tritongru.tools.oracle.compare import compare_backend, has_failed
from tritongru.tuning.configs import SCHEDULES, SINGLE, LaunchConfig

CONFIGS = {name: LaunchConfig(name, 16, 16, 16) for name in SCHEDULES} | {SINGLE: LaunchConfig(SINGLE, 16, 32, 32)}


def main() -> int:
    """Run the case; 1 if a result is wrong."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case(batch=17, time=4, input_size=3, units=32, mask=True, resets=True, recurrent_dropouts=3)
    with use_config(CONFIGS[sys.argv[1]]):
        rows = compare_backend(case, "triton", device)
    print(f"{len(rows)} quantities, {sum(row.verdict == 'ok' for row in rows)} within tolerance")
    return int(has_failed(rows) or any(row.verdict == "not run" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
