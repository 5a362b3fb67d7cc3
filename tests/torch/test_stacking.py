"""Layers that overlap: the schedule by arithmetic, waiting by delays at random, numbers against layers in turn."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tritongru import compat, explain, overlap, stacking
from tritongru.backends.triton import reasons
from tritongru.call.check import check
from tritongru.tuning.configs import Device

H100 = Device(132, 227 * 1024, name="Test GPU", target="sm_90")


@pytest.mark.parametrize("layers, chunks", [(1, 3), (2, 1), (2, 5), (3, 2), (4, 7)])
def test_the_order_serves_what_each_chunk_needs(layers: int, chunks: int) -> None:
    order = list(overlap.in_order(layers, chunks))
    assert sorted(order) == [(layer, chunk) for layer in range(layers) for chunk in range(chunks)]
    for place, (layer, chunk) in enumerate(order):
        before = set(order[:place])
        assert layer == 0 or (layer - 1, chunk) in before
        assert chunk == 0 or (layer, chunk - 1) in before


@pytest.mark.parametrize("steps, layers", [(1000, 2), (1000, 4), (300, 2), (240, 2), (5000, 8), (1, 2), (59, 3)])
def test_when_it_pays(steps: int, layers: int) -> None:
    chunk = overlap.choose_chunk(steps, layers)
    chunks = -(-steps // chunk)
    turns = len({layer + number for layer, number in overlap.in_order(layers, chunks)})
    if steps % chunk == 0:
        assert overlap.gain(steps, layers, chunk) == pytest.approx(layers * chunks / turns)
    assert chunks == 1 or chunk >= overlap.STEPS_A_LAYER * layers
    assert bool(overlap.reasons_against(steps, layers)) == (overlap.gain(steps, layers, chunk) < 1.25)
    assert overlap.reasons_against(steps, layers) or chunks > 1


class Delayed:
    """Lines whose work is done at the end, in any order that the events allow."""

    def __init__(self, layers: int, seed: int):
        self.queues: list[list] = [[] for _ in range(layers)]
        self.done, self.lent, self.random = [0] * layers, set(), random.Random(seed)

    def begin(self):
        pass

    def run(self, layer, work):
        boxes = ({}, {})
        self.queues[layer].append(("work", boxes, work()))
        return boxes

    def record(self, layer):
        return layer, len(self.queues[layer])

    def wait(self, layer, event):
        self.queues[layer].append(("wait", event, None))

    def lend(self, value, layer):
        self.lent.add((id(value), layer))

    def join(self, values):
        while True:
            ready = [layer for layer in range(len(self.queues)) if self.may_go_on(layer)]
            if not ready:
                break
            layer = self.random.choice(ready)
            kind, boxes, compute = self.queues[layer][self.done[layer]]
            if kind == "work":
                for box, value in zip(boxes, compute(), strict=True):
                    box["value"] = value
            self.done[layer] += 1
        assert self.done == [len(queue) for queue in self.queues], "lines that wait for each other"

    def may_go_on(self, layer) -> bool:
        if self.done[layer] == len(self.queues[layer]):
            return False
        kind, event, _ = self.queues[layer][self.done[layer]]
        return kind == "work" or self.done[event[0]] >= event[1]


class NoWaits(Delayed):
    """Lines that forget what they were to wait for."""

    def wait(self, layer, event):
        pass


def toy(layers: int, chunks: int, lines: Delayed) -> tuple[list, list]:
    """A chain that no two orders of its steps give the same result, run on `lines`; a value not there yet is None."""

    def step(layer, chunk, x, state):
        def compute():
            entering = (x.get("value"), state.get("value"))
            return (layer, chunk, *entering), ("state", layer, chunk, *entering)

        return compute

    rows = [{"value": ("x", chunk)} for chunk in range(chunks)]
    states = [{"value": ("h0", layer)} for layer in range(layers)]
    outputs, last = overlap.run_in_chunks(step, rows, states, lines)
    return [box["value"] for box in outputs], [box["value"] for box in last]


def in_turn(layers: int, chunks: int) -> tuple[list, list]:
    rows, states = [("x", chunk) for chunk in range(chunks)], [("h0", layer) for layer in range(layers)]
    for layer in range(layers):
        for chunk in range(chunks):
            entering = rows[chunk], states[layer]
            rows[chunk], states[layer] = (layer, chunk, *entering), ("state", layer, chunk, *entering)
    return rows, states


@pytest.mark.parametrize("seed", range(20))
def test_delays_change_nothing(seed: int) -> None:
    assert toy(3, 4, Delayed(3, seed)) == in_turn(3, 4)


def test_a_line_that_does_not_wait_is_noticed() -> None:
    wrong = [toy(3, 4, NoWaits(3, seed)) != in_turn(3, 4) for seed in range(20)]
    assert sum(wrong) > 15


class AtOnce:
    """Lines on which everything is done at once; what was lent is kept."""

    def __init__(self):
        self.lent: list[tuple[int, int]] = []

    def begin(self):
        pass

    def run(self, layer, work):
        return work()

    def record(self, layer):
        return None

    def wait(self, layer, event):
        pass

    def lend(self, value, layer):
        self.lent.append((value.data_ptr(), layer))

    def join(self, values):
        pass


def both_ways(options: dict, given: dict, backend: str, chunk: int, lines=None):
    """Return output, h_n and gradients of layers in turn and in chunks."""
    gru, x = compat.GRU(3, 5, num_layers=3, **options), torch.randn(7, 4, 3, dtype=options.get("dtype"))
    hx = torch.randn(3, 4, 5, dtype=x.dtype) if given.get("hx") else None
    valid = torch.arange(7)[:, None] < torch.tensor([7, 3, 0, 6]) if given.get("lengths") else None
    resets = torch.rand(7, 4) < 0.3 if given.get("resets") else None
    found = []
    for chunked in (False, True):
        x, gru = x.detach().requires_grad_(), gru.requires_grad_()
        torch.manual_seed(1)
        if chunked:
            first = stacking.arguments_of_layer(gru, 0, x, hx, valid, None if resets is None else resets & valid)
            given_lines = lines or AtOnce()
            y, h_n, _ = stacking.run_overlapping(gru, first, hx, valid, None if resets is None else resets & valid,
                                                 backend, given_lines, chunk)  # fmt: skip
        else:
            y, h_n, _ = stacking.run_layers(gru, x, hx, valid, resets, backend)
        gradients = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y).to(y)).sum() + h_n.sum(),
                                        [x, *gru.parameters()])  # fmt: skip
        found.append((y, h_n, gradients))
    return found


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options, given",
    [
        ({}, {}),
        (dict(bias=False), dict(hx=True)),
        (dict(recurrent_dropout=0.4, zoneout=0.3), dict(lengths=True, resets=True, hx=True)),
        (dict(layer_norm="joint"), dict(lengths=True)),
    ],
    ids=str,
)
def test_chunks_give_the_numbers_of_whole_layers(options: dict, given: dict, backend: str, chunk: int) -> None:
    """A step's arithmetic is the same one: in float64 the two differ by the order of the vendor's sums at most."""
    whole, parts = both_ways(options | dict(dtype=torch.float64), given, backend, chunk)
    for name, a, b in zip(("output", "h_n"), whole, parts, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}")
    for a, b in zip(whole[2], parts[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_chunks_give_the_same_bits_in_numba() -> None:
    """numba's products do not depend on how many steps there are, so there not even the last bits differ."""
    pytest.importorskip("numba")
    for given in (dict(lengths=True), dict(lengths=True, resets=True, hx=True)):
        whole, parts = both_ways(dict(recurrent_dropout=0.4), given, "numba", 4)
        assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])


def test_all_that_another_line_made_is_lent() -> None:
    lines = AtOnce()
    both_ways(dict(recurrent_dropout=0.4), dict(lengths=True, resets=True, hx=True), "eager", 3, lines)
    for layer in range(3):
        # Input, weights, state, mask, resets and dropout mask, for each of three chunks.
        assert len({pointer for pointer, on in lines.lent if on == layer}) >= 3 * 3


def first_of(gru: compat.GRU, steps: int = 1000) -> list:
    return stacking.arguments_of_layer(gru, 0, torch.randn(steps, 2, gru.input_size), None, None, None)


def test_what_stands_against_it_is_said() -> None:
    for options, word in (
        (dict(bidirectional=True), "bidirectional=True"),
        (dict(dropout=0.5), "dropout=0.5"),
        (dict(heads=2), "heads=2"),
        (dict(backend="eager"), "backend eager"),
    ):
        gru = compat.GRU(3, 4, num_layers=2, **options)
        (reason, *_) = stacking.reasons_against_overlap(gru, first_of(gru), gru.backend)
        assert word in reason
    gru = compat.GRU(3, 4, num_layers=2, dropout=0.5).eval()
    assert "dropout" not in stacking.reasons_against_overlap(gru, first_of(gru), "eager")[0]
    assert stacking.say_overlap(1000, 2) == "2 layers overlap in chunks of 125 steps: at best 1.78 times"
    assert stacking.say_serial(3, ["a", "b"]) == "3 layers one after another: a; b"


def test_what_looks_at_the_operators_keeps_layers_in_turn(monkeypatch) -> None:
    gru = compat.GRU(3, 4, num_layers=2, backend="eager")
    found = []

    def ask(x):
        found.append(stacking.reasons_against_overlap(gru, stacking.arguments_of_layer(gru, 0, x, None, None, None),
                                                      "eager"))  # fmt: skip
        return x

    x = torch.randn(1000, 2, 3)
    torch.func.vmap(ask)(x.expand(3, -1, -1, -1))
    with FlopCounterMode(display=False):
        ask(x)
    assert "torch.func" in found[0][0] and "a mode" in found[1][0]
    # `torch.jit.trace` is to hold for other lengths than the one it saw.
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(stacking, "reasons_against_overlap", lambda *_: pytest.fail("asked while traced"))
    whole = torch.ones(2, dtype=torch.int64)
    gru.requires_grad_(False)
    torch.jit.trace(lambda x: gru(x, lengths=whole)[0], x[:2], check_trace=False)


def test_a_short_sequence_is_not_checked_twice(monkeypatch) -> None:
    monkeypatch.setattr(stacking, "check", lambda *_: pytest.fail("checked"))
    gru = compat.GRU(3, 4, num_layers=2)
    for steps in (0, 1, 100):
        (reason,) = stacking.reasons_against_overlap(gru, first_of(gru, steps), "auto")
        assert f"of {steps} steps would gain" in reason


def test_a_decision_says_how_layers_follow() -> None:
    gru = compat.GRU(3, 4, num_layers=2)
    assert explain(gru, torch.randn(5, 2, 3)).layers == "", "on a CPU there is nothing to choose"


def test_programs_that_wait_must_all_be_there(monkeypatch) -> None:
    monkeypatch.setattr(reasons, "device_limits", lambda device: H100)
    gru = compat.GRU(256, 256, num_layers=2)
    for batch, layers, fits in ((16, 2, True), (16, 100, False), (512, 8, False), (0, 2, True)):
        x = torch.randn(300, batch, 256)
        signature = check(stacking.arguments_of_layer(gru, 0, x, None, None, None)[0]).signature
        signature = signature._replace(device="cuda", dtype=torch.bfloat16)
        found = reasons.reasons_against_several(signature, layers)
        assert bool(found) != fits, (batch, layers, found)
        assert fits or "132 multiprocessors" in found[0]
