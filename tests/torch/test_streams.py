"""Layers on streams: no read before its write, no memory given away too early; on a CPU (races.py), and on a GPU."""

from __future__ import annotations

import pytest
import torch
from races import Races, Stream

from tritongru import compat, overlap, stacking


@pytest.fixture
def races(monkeypatch) -> Races:
    """Calls are taken for those of a GPU, and several chunks for worth it."""
    monkeypatch.setattr(overlap, "STEPS_A_LAYER", 1)
    monkeypatch.setattr(overlap.Streams, "_of_device", {})
    monkeypatch.setattr(stacking, "reasons_against_overlap", lambda *_: [])
    found = Races(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    return found


CALLS = [
    ({}, {}),
    (dict(bias=False), dict(hx=True)),
    (dict(recurrent_dropout=0.4), dict(lengths=True)),
    (dict(zoneout=0.3), dict(hx=True)),
    (dict(recurrent_dropout=0.4, zoneout=0.3, layer_norm="joint"), dict(lengths=True, resets=True, hx=True)),
]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("options, given", CALLS, ids=str)
def test_streams_wait_for_each_other_and_keep_memory(races: Races, options: dict, given: dict, trains: bool) -> None:
    gru, x = compat.GRU(3, 5, num_layers=3, backend="eager", **options), torch.randn(12, 4, 3)
    call = dict(
        hx=torch.randn(3, 4, 5) if "hx" in given else None,
        lengths=torch.tensor([12, 3, 0, 6]) if "lengths" in given else None,
        resets=torch.rand(12, 4) < 0.3 if "resets" in given else None,
    )
    with races, torch.set_grad_enabled(trains):
        output, h_n = gru(x, **call)
        assert output.add(h_n.sum()).isfinite().all()
    assert gru.last_decision.layers == "3 layers overlap in chunks of 3 steps: at best 2.00 times"
    assert races.found == []
    (streams,) = overlap.Streams._of_device.values()
    assert [stream.known[stream] >= 4 for stream in streams] == [True] * 3, "each layer has a stream of its own"


def test_what_is_computed_for_a_call_is_waited_for(races: Races) -> None:
    """Weights behind a parametrization, all layers' of them, are made on the caller's stream."""
    gru = compat.GRU(3, 5, num_layers=2, backend="eager")
    for layer in range(2):
        torch.nn.utils.parametrizations.weight_norm(gru, f"weight_hh_l{layer}")
    with races:
        gru(torch.randn(12, 4, 3))
    assert "overlap" in gru.last_decision.layers and races.found == []


def test_streams_are_kept(races: Races) -> None:
    small, large = (compat.GRU(3, 5, num_layers=layers, backend="eager") for layers in (2, 3))
    with races:
        for gru in (large, small, large):
            gru(torch.randn(12, 4, 3))
    assert [len(streams) for streams in overlap.Streams._of_device.values()] == [3] and races.found == []


def test_races_are_found(monkeypatch) -> None:
    """A stream that reads too early, writes too early, or what may be gone; and none of it once it waits."""
    for waits, lends, expected in ((True, True, 0), (False, True, 1), (True, False, 1), (False, False, 2)):
        races, side = Races(monkeypatch), Stream()
        with races:
            a = torch.ones(3) * 2
            if waits:
                side.wait_stream(races.caller)
            if lends:
                a.record_stream(side)
            with races.on(side):
                b = a[1:].t() + 1
            assert len(races.found) == expected
            b.record_stream(races.caller)
            if waits:
                races.caller.wait_event(side.record_event())
            a.mul_(2)  # while `side` may be reading it
            assert len(races.found) == expected + (not waits)
            b.sum()
            assert len(races.found) == expected + 2 * (not waits)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_overlapped_layers_are_the_layers_in_turn(dtype: torch.dtype, monkeypatch) -> None:
    torch.manual_seed(0)
    gru = compat.GRU(64, 256, num_layers=3, device="cuda", dtype=dtype, backend="triton")
    x = torch.randn(600, 16, 64, device="cuda", dtype=dtype, requires_grad=True)
    lengths = torch.randint(1, 601, (16,), device="cuda")
    found = []
    for overlapped in (True, False):
        if not overlapped:
            monkeypatch.setattr(stacking, "reasons_against_overlap", lambda *_: ["in turn"])
        y, h_n = gru(x, lengths=lengths)
        assert ("overlap" in gru.last_decision.layers) == overlapped
        found.append((y, h_n, *torch.autograd.grad(y.float().square().sum(), [x, *gru.parameters()])))
    for a, b in zip(*found, strict=True):
        # A state that goes from chunk to chunk is rounded to the dtype, and products of float32 to TF32.
        assert (a - b).abs().max() <= (3e-2 if dtype == torch.bfloat16 else 3e-3) * b.abs().max()


@pytest.mark.gpu
def test_on_a_gpu_a_graph_captures_overlapped_layers() -> None:
    gru = compat.GRU(64, 256, num_layers=2, device="cuda", dtype=torch.bfloat16, backend="triton")
    x = torch.randn(600, 16, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        gru(x)
        assert "overlap" in gru.last_decision.layers
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured, _ = gru(x)
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(captured, gru(x)[0], rtol=1e-2, atol=1e-2)
