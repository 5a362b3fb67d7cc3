"""Layers among processes and threads: data workers, threads on one layer, the end of the interpreter."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import tritongru
from tritongru import compat

UNITS, INPUT = 8, 4


class Encoded(Dataset):
    """Sequences that a layer encodes inside of the worker."""

    def __init__(self, layer: torch.nn.Module):
        self.layer = layer
        self.sequences = torch.randn(6, 9, INPUT, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, row: int) -> torch.Tensor:
        x = self.sequences[row][None].clone().requires_grad_()
        encoded = self.layer(x, mask=torch.arange(9)[None] < 1 + row)
        (gradient,) = torch.autograd.grad(encoded.sum(), x)
        return torch.cat((encoded.detach().flatten(), gradient.flatten()))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_layer_inside_data_workers(start: str) -> None:
    dataset = Encoded(tritongru.GRU(UNITS, input_size=INPUT))
    here = torch.stack([dataset[row] for row in range(len(dataset))])  # also starts this process's thread pools
    workers = DataLoader(dataset, 3, num_workers=1, multiprocessing_context=start, timeout=240)
    torch.testing.assert_close(torch.cat(list(workers)), here, rtol=0, atol=1e-6)


def in_threads(function, count: int = 8) -> list:
    """Return what `function(number)` gives in each of `count` threads, all begun at once."""
    results: list = [None] * count
    together = threading.Barrier(count)

    def work(number: int) -> None:
        together.wait()
        try:
            results[number] = [function(number) for _ in range(6)]
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize(
    "layer",
    [
        tritongru.GRU(UNITS, input_size=INPUT, return_sequences=True),
        tritongru.GRU(UNITS, input_size=INPUT, return_sequences=True, reset_after=False, backend="eager"),
        tritongru.Bidirectional(tritongru.GRU(UNITS, input_size=INPUT, return_sequences=True)),
        compat.GRU(INPUT, UNITS, 2, bidirectional=True, batch_first=True),
        compat.GRU(INPUT, UNITS, batch_first=True, backend="reference"),
    ],
    ids=["layer", "eager", "bidirectional", "drop-in", "reference"],
)
def test_threads_on_one_layer_give_the_serial_results(layer: torch.nn.Module) -> None:
    def work(number: int) -> list[torch.Tensor]:
        x = torch.randn(1 + number, 7, INPUT, generator=torch.Generator().manual_seed(number)).requires_grad_()
        output = layer(x)
        output = output[0] if isinstance(output, tuple) else output
        return [output.detach(), *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]

    serial = [work(number) for number in range(8)]
    for expected, runs in zip(serial, in_threads(work), strict=True):
        for actual in runs:
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_threads_that_train_with_dropout_draw_masks_of_their_own() -> None:
    layer = tritongru.GRU(UNITS, input_size=INPUT, dropout=0.5, recurrent_dropout=0.5)

    def work(number: int) -> torch.Size:
        return layer(torch.randn(1 + number, 3, INPUT), training=True).shape

    for number, shapes in enumerate(in_threads(work)):
        assert set(shapes) == {(1 + number, UNITS)}


def test_threads_with_streams_of_their_own_on_one_layer() -> None:
    layer = tritongru.GRU(UNITS, input_size=INPUT, return_sequences=True)

    def work(number: int) -> torch.Tensor:
        x = torch.randn(2, 5, INPUT, generator=torch.Generator().manual_seed(number))
        stream = tritongru.Stream(layer)
        with torch.no_grad():
            steps = torch.stack([stream.step(x[:, t]) for t in range(5)], 1)
            torch.testing.assert_close(steps, layer(x), rtol=1e-5, atol=1e-6)
        return steps

    in_threads(work)


def test_each_thread_has_its_own_precision_and_grad_mode() -> None:
    layer = compat.GRU(INPUT, UNITS)
    x = torch.randn(5, 2, INPUT)

    def work(number: int) -> bool:
        with torch.set_grad_enabled(bool(number % 2)):
            return layer(x)[0].requires_grad

    for number, seen in enumerate(in_threads(work)):
        assert set(seen) == {bool(number % 2)}


AT_EXIT = """
    import threading, torch, tritongru
    from tritongru import compat
    layer = tritongru.GRU(8, input_size=4, return_sequences=True, stateful=True)
    copy = compat.GRU(4, 8, 2, bidirectional=True)
    stream = tritongru.Stream(tritongru.GRU(8, input_size=4))
    graph = layer(torch.randn(2, 5, 4), mask=torch.ones(2, 5)).sum() + stream.step(torch.randn(2, 4)).sum()
    copy(torch.randn(5, 2, 4))[0].sum().backward()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Thread(target=layer.explain, args=(torch.randn(2, 5, 4),)).start()
    raise SystemExit(0)
"""


def test_interpreter_ends_quietly_with_live_layers() -> None:
    script = textwrap.dedent(AT_EXIT)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_copy_made_while_others_run_is_whole() -> None:
    layer = tritongru.GRU(UNITS, input_size=INPUT, dropout=0.5, activity_regularizer="l2")

    def work(number: int) -> torch.Size:
        layer(torch.randn(2, 3, INPUT), training=True)
        return copy.deepcopy(layer)(torch.randn(2, 3, INPUT)).shape

    assert all(shape == (2, UNITS) for shapes in in_threads(work, 4) for shape in shapes)


def test_a_compiled_call_draws_masks_of_its_own() -> None:
    layer = tritongru.GRU(UNITS, input_size=INPUT, dropout=0.5, recurrent_dropout=0.5)
    compiled = torch.compile(layer, backend="eager")
    layer(torch.randn(3, 4, INPUT))
    assert compiled(torch.randn(2, 4, INPUT)).shape == (2, UNITS)
    x = torch.ones(1, 4, INPUT)
    assert not torch.equal(compiled(x), compiled(x))
