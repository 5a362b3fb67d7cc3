"""The long run: training and streaming with changing shapes, while memory, caches and compilations are watched.

    python tests/long/soak.py --minutes 20

It ends with status 1 if, after a warm-up of a quarter of the time, resident memory or the number of live tensors still
grows, or if a compiler was called more often than the shapes explain.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import tritongru
from tritongru import compat

INPUT, UNITS = 12, 24
# A compiled layer may be traced once for sizes of 1 and once for sizes that change, in each of two ways of calling it.
COMPILATIONS_PER_LAYER = 8
MEGABYTES_PER_MINUTE, MEGABYTES = 1.0, 16.0
LIVE_TENSORS = 16


@dataclass
class Watch:
    """What is measured, one entry every few seconds."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)

    def look(self, seconds: float) -> None:
        gc.collect()
        self.seconds.append(seconds)
        self.megabytes.append(resident_megabytes())
        self.tensors.append(sum(isinstance(thing, Tensor) for thing in gc.get_objects()))

    def after_warm_up(self) -> Watch:
        """Return the part after the first quarter of the time."""
        begin = next((i for i, s in enumerate(self.seconds) if s >= self.seconds[-1] / 4), 0)
        return Watch(self.seconds[begin:], self.megabytes[begin:], self.tensors[begin:])

    def faults(self) -> list[str]:
        """Return what grew, in words."""
        late, found = self.after_warm_up(), []
        slope = late.slope()
        growth = slope * (late.seconds[-1] - late.seconds[0]) / 60
        if growth > MEGABYTES and slope > MEGABYTES_PER_MINUTE:
            found.append(f"resident memory grows by {slope:.2f} MB a minute, {growth:.0f} MB in all")
        if max(late.tensors[-3:]) > max(late.tensors[:3]) + LIVE_TENSORS:
            found.append(f"live tensors grow from {late.tensors[0]} to {late.tensors[-1]}")
        return found

    def slope(self) -> float:
        """Return the growth of resident memory, MB a minute, by least squares."""
        return float(np.polyfit(self.seconds, self.megabytes, 1)[0]) * 60 if len(self.seconds) > 2 else 0.0


def resident_megabytes() -> float:
    """Return the memory this process holds, without what it could give back."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


class Trainer:
    """A layer with its optimizer, trained on shapes that change at every step."""

    def __init__(self, layer: torch.nn.Module, call: Callable[[torch.nn.Module, Tensor, Tensor], Tensor]):
        self.layer, self.call = layer, call
        self.optimizer = torch.optim.Adam(layer.parameters(), 1e-3)

    def step(self, batch: int, time: int) -> None:
        x, lengths = torch.randn(batch, time, INPUT), torch.randint(1, time + 1, (batch,))
        self.optimizer.zero_grad()
        loss = self.call(self.layer, x, lengths).square().mean()
        loss.backward()
        self.optimizer.step()
        assert torch.isfinite(loss), "the loss is not finite"


def make_workers(compiler: str) -> tuple[dict[str, Callable[[int, int], None]], int]:
    """Return the kinds of work by name, and how many of the layers are compiled."""
    torch.manual_seed(0)

    def masked(layer, x, lengths):
        return layer(x, mask=torch.arange(x.shape[1])[None] < lengths[:, None])

    def packed(layer, x, lengths):
        return layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[0].data

    def jagged(layer, x, lengths):
        rows = torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])
        offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
        return layer(torch.nested.nested_tensor_from_jagged(rows, offsets))

    options = dict(input_size=INPUT, return_sequences=True)
    keras = tritongru.GRU(UNITS, dropout=0.2, recurrent_dropout=0.2, **options)
    both = tritongru.Bidirectional(tritongru.GRU(UNITS, **options))
    trainers = {
        "masked training with dropout": Trainer(keras, masked),
        "bidirectional training": Trainer(both, masked),
        "packed training, two layers": Trainer(compat.GRU(INPUT, UNITS, 2, batch_first=True), packed),
        "jagged training": Trainer(tritongru.GRU(UNITS, input_size=INPUT), jagged),
        "activity loss": Trainer(tritongru.GRU(UNITS, activity_regularizer="l2", **options), _with_losses),
    }
    for name, layer in {
        "compiled training": tritongru.GRU(UNITS, **options),
        "compiled drop-in": compat.GRU(INPUT, UNITS, batch_first=True),
    }.items():
        compiled = torch.compile(layer, backend=compiler, dynamic=True)
        call = _with_lengths if isinstance(layer, compat.GRU) else masked
        trainers[name] = Trainer(layer, lambda _, x, lengths, compiled=compiled, call=call: call(compiled, x, lengths))
    workers: dict[str, Callable[[int, int], None]] = {name: t.step for name, t in trainers.items()}

    stateful = tritongru.GRU(UNITS, stateful=True, input_size=INPUT)
    stream = tritongru.Stream(tritongru.GRU(UNITS, input_size=INPUT))

    def streaming(batch: int, time: int) -> None:
        stream.reset()
        with torch.inference_mode(bool(time % 2)):
            for _ in range(time):
                stream.step(torch.randn(batch, INPUT))
        stream.reset([0])

    def learning_stream(batch: int, time: int) -> None:
        stream.reset()
        for t in range(time):
            y = stream.step(torch.randn(batch, INPUT))
            if t % 8 == 7 or t == time - 1:
                y.sum().backward()
                stream.detach()
        stream.layer.zero_grad()

    def carried(batch: int, time: int) -> None:
        stateful(torch.randn(4, time, INPUT)).sum().backward()
        stateful.zero_grad()

    def named(batch: int, time: int) -> None:
        x = torch.randn(batch, time, INPUT, dtype=torch.float64)
        w, u = torch.randn(INPUT, 3 * UNITS).double(), torch.randn(UNITS, 3 * UNITS).double()
        for backend in ("eager", "aten", "reference"):
            tritongru.gru(x, w, u, backend=backend)
        tritongru.explain(keras, x.float())

    workers |= {"streaming": streaming, "streaming with gradients": learning_stream, "stateful training": carried,
                "named backends": named}  # fmt: skip
    return workers, 2


def _with_losses(layer, x, lengths):
    return layer(x).sum(1) * 0 + sum(layer.losses)


def _with_lengths(layer, x, lengths):
    return layer(x, lengths=lengths)[0]


def soak(seconds: float, compiler: str = "aot_eager", every: float = 5.0, seed: int = 0) -> int:
    """Run for `seconds`, print what was measured, and return how many faults there are."""
    import torch._dynamo

    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    workers, compiled_layers = make_workers(compiler)
    generator, watch, done = random.Random(seed), Watch(), Counter()
    begin = time.monotonic()
    last = begin - every
    while (now := time.monotonic()) - begin < seconds:
        name = generator.choice(list(workers))
        workers[name](generator.randint(1, 16), generator.randint(1, 40))
        done[name] += 1
        if now - last >= every:
            last = now
            watch.look(now - begin)
    watch.look(time.monotonic() - begin)
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    late = watch.after_warm_up()
    for name, count in sorted(done.items()):
        print(f"{name}: {count} steps")
    print(f"{done.total()} steps with changing shapes in {watch.seconds[-1]:.0f} s")
    print(f"resident memory after warm-up: {late.megabytes[0]:.0f} MB, at the end {late.megabytes[-1]:.0f} MB, "
          f"slope {late.slope():.2f} MB a minute")  # fmt: skip
    print(f"live tensors after warm-up: {late.tensors[0]}, at the end {late.tensors[-1]}")
    print(f"distinct compilations: {compilations} of {compiled_layers} compiled layers, {compiler}")
    faults = watch.faults()
    if compilations > COMPILATIONS_PER_LAYER * compiled_layers:
        faults.append(f"{compilations} compilations")
    for fault in faults:
        print(f"FAIL: {fault}")
    return len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--compiler", default="aot_eager", help='backend of torch.compile; "inductor" needs a compiler')
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    return 1 if soak(60 * args.minutes, args.compiler) else 0


if __name__ == "__main__":
    sys.exit(main())
