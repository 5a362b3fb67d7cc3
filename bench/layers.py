"""Stacked and bidirectional layers: `tritongru.compat.GRU` beside `torch.nn.GRU`, with the same weights.

Where stacked layers overlap (`overlap.py`), also the same layer with its layers in turn; a rehearsal times that too.

    python bench/layers.py                     on the GPU, into bench/results/layers.csv; below five minutes
    python bench/layers.py --device cpu        on a CPU

Outputs and states are compared before anything is timed. Adds a row for each layer and direction: medians in
milliseconds of a call, taken in turn.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tritongru import compat, stacking  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402
from tritongru.tools.benchmark.timing import measure  # noqa: E402

# T, B, U; the input has U features. Layers and whether both directions.
SIZES = [(512, 16, 256), (512, 64, 256), (512, 1, 512), (512, 16, 512), (256, 16, 1024), (512, 16, 128)]
SHAPES = [(1, True), (2, False), (4, False), (2, True)]
REHEARSED = [(5, 2, 16)], [(1, True), (2, False)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Largest difference from torch's layer, of its largest output; both round in the dtype.
NEAR = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 5e-3}  # torch multiplies in TF32 on a GPU
FIELDS = (
    "date", "device", "torch", "triton", "dtype", "layers", "directions", "T", "B", "U", "direction", "backend",
    "nn_gru_ms", "compat_ms", "ratio", "in_turn_ms", "chosen",
)  # fmt: skip


def make_pair(layers: int, both: bool, units: int, dtype: torch.dtype, device: str) -> tuple[nn.GRU, compat.GRU]:
    """Return torch's layer and ours with its weights."""
    torch.manual_seed(0)
    theirs = nn.GRU(units, units, layers, bidirectional=both, device=device, dtype=dtype)
    ours = compat.GRU(units, units, layers, bidirectional=both, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def check(theirs: nn.GRU, ours: compat.GRU, x: torch.Tensor, near: float) -> None:
    """Compare outputs and states; ValueError where they differ by more than rounding."""
    with torch.no_grad():
        pairs = zip(theirs(x), ours(x), strict=True)
        worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    if not worst <= near:
        raise ValueError(f"outputs differ by {worst:.2g} of the largest, for {tuple(x.shape)} in {x.dtype}")


def run(layer: nn.Module, x: torch.Tensor, trains: bool) -> None:
    """Run the layer once, with the gradients of its weights if it `trains`."""
    with torch.set_grad_enabled(trains):
        output, _ = layer(x)
    if trains:
        layer.zero_grad()
        output.sum().backward()


def run_in_turn(layer: nn.Module, x: torch.Tensor, trains: bool) -> None:
    """Run the layer as `run`, its layers one after another."""
    with mock.patch.object(stacking, "reasons_against_overlap", lambda *_: ["timed in turn"]):
        run(layer, x, trains)


def main() -> int:
    """Check and time each layer; 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "layers.csv", help="the table")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing for each layer and direction")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds; what is left is named")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU")
    options = parser.parse_args()
    device = "cpu" if options.rehearse else options.device
    sizes, shapes = REHEARSED if options.rehearse else (SIZES, SHAPES)
    stop, where, left = time.monotonic() + options.budget, conditions(torch.device(device)), 0
    is_new = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n", extrasaction="ignore")
        if is_new:
            writer.writeheader()
        for name in options.dtypes:
            for (T, B, U), (layers, both) in ((size, shape) for size in sizes for shape in shapes):
                if time.monotonic() > stop:
                    left += 1
                    continue
                theirs, ours = make_pair(layers, both, U, DTYPES[name], device)
                x = torch.randn(T, B, U, device=device, dtype=DTYPES[name])
                check(theirs, ours, x, NEAR[name])
                for direction, trains in (("inference", False), ("training", True)):
                    calls = {
                        "nn": lambda _, layer=theirs, x=x, trains=trains: run(layer, x, trains),
                        "ours": lambda _, layer=ours, x=x, trains=trains: run(layer, x, trains),
                    }
                    # Asked of a call like those to come: with gradients more programs have to fit the device.
                    run(ours, x, trains)
                    decision = ours.last_decision
                    if "overlap" in decision.layers or (options.rehearse and layers > 1):
                        calls["turn"] = lambda _, layer=ours, x=x, trains=trains: run_in_turn(layer, x, trains)
                    times = measure(calls, device, options.seconds)
                    torch_ms, our_ms = times["nn"].p50, times["ours"].p50
                    turn_ms = f"{times['turn'].p50:.4g}" if "turn" in times else ""
                    row = where | dict(
                        dtype=name, layers=layers, directions=1 + both, T=T, B=B, U=U, direction=direction,
                        backend=decision.backend, nn_gru_ms=f"{torch_ms:.4g}", compat_ms=f"{our_ms:.4g}",
                        ratio=f"{torch_ms / our_ms:.3g}", in_turn_ms=turn_ms, chosen=decision.layers,
                    )  # fmt: skip
                    writer.writerow(row)
                    file.flush()
                    sides = "both" if both else "one "
                    line = f"{name} {layers} layers {sides} T{T} B{B} U{U} {direction}: {torch_ms / our_ms:.2f} x"
                    print(line + (f", in turn {turn_ms} ms in place of {our_ms:.4g}" if turn_ms else ""))
    print(f"{left} layers left out for lack of time")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
