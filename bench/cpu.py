"""What the CPU goals are judged by, below eight minutes on two quiet cores, and the page that tells it.

    python bench/cpu.py

Adds rows to bench/results/bench-cpu.csv and writes docs/performance.md. The part against Keras needs Keras 3.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

AGAINST_TORCH = "cpu named --backends auto aten eager nn.GRU --budget 230".split()
AGAINST_LOOPS = (
    "features recurrent-rl --backends auto eager reference loop nn.GRU nn.GRU-packed keras --budget 170".split()
)
SAME = f"--device cpu --memory --seconds 1.5 --csv {ROOT / 'bench' / 'results' / 'bench-cpu.csv'}".split()


def main() -> int:
    """Run both parts and write the page; 1 if a backend of this package failed."""
    from tritongru.__main__ import main as command
    from tritongru.tools.benchmark.report import write_report

    status = max(command(["bench", *part, *SAME]) for part in (AGAINST_TORCH, AGAINST_LOOPS))
    print(f"wrote {write_report(ROOT)}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
