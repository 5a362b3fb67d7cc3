"""What the CPU goals are judged by, about eight minutes on two quiet cores, and the page that tells it.

    python bench/cpu.py

Adds rows to bench/results/bench-cpu.csv and writes docs/performance.md. onnxruntime, OpenVINO, JAX and
Keras 3 take part where they are installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TABLE = f"--device cpu --csv {ROOT / 'bench' / 'results' / 'bench-cpu.csv'}".split()
RUNTIMES = "cpu named --backends auto nn.GRU onnxruntime openvino jax --seconds 0.6 --budget 230".split()
LOOPS = (
    "features recurrent-rl --backends auto eager reference loop nn.GRU nn.GRU-packed keras --memory --seconds 0.6 "
    "--budget 90".split()
)
SMALL = (
    "small --backends nn.GRU compat.GRU tritongru.GRU nn.GRUCell Stream.step Stream.step-eager --threads 1 "
    "--directions inference --seconds 0.3 --budget 70".split()
)


def main() -> int:
    """Run all parts and write the page; 1 if a backend of this package failed."""
    from tritongru.__main__ import main as command
    from tritongru.tools.benchmark.report import write_report

    status = max(command(["bench", *part, *TABLE]) for part in (RUNTIMES, LOOPS, SMALL))
    print(f"wrote {write_report(ROOT)}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
