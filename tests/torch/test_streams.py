"""Layers on streams: no read before its write, no memory given away too early; on a CPU (races.py), and on a GPU."""

from __future__ import annotations

import pytest
import torch
from races import Races, Stream

from tritongru import compat, overlap, stacking
from tritongru.backends import eager


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


def test_another_layers_backward_pass_waits_on_the_callers_stream(races: Races, monkeypatch) -> None:
    """The input wants no gradient: the gate alone makes the caller's stream wait for the layers."""
    ours, other = compat.GRU(3, 5, num_layers=2, backend="eager"), compat.GRU(3, 4, backend="eager")
    ours.weight_hh_l1.requires_grad_(False)
    order, made_on, run_backward, gate = [], [], eager.run_backward, overlap.gate

    def scan(a, *rest):
        order.append(a.u.shape[0])
        assert rest[-1].u == (a.u.shape[0] == 4 or a.u.data_ptr() == ours.weight_hh_l0.data_ptr()), "a frozen weight"
        return run_backward(a, *rest)

    monkeypatch.setattr(eager, "run_backward", scan)
    monkeypatch.setattr(overlap, "gate", lambda values: (made_on.append(races.current), gate(values))[1])
    monkeypatch.setattr(overlap._Gate, "backward", staticmethod(lambda ctx, *d: (order.append("gate"), d)[1]))
    with races:
        x = torch.randn(12, 4, 3)
        first, second = other(x)[0], ours(x)[0]
    (first.sum() + second.sum()).backward()
    assert made_on == [races.caller] and order == [5] * 2 * 6 + ["gate", 4], "6 chunks of 2 layers"
    assert ours.weight_hh_l1.grad is None and ours.weight_hh_l0.grad is not None


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


@pytest.mark.gpu
def test_on_a_gpu_another_layers_programs_do_not_meet_theirs_in_the_backward_pass(monkeypatch) -> None:
    """On 132 multiprocessors 4 scans of 32 programs fit, and one more does not."""
    torch.manual_seed(0)
    options = dict(device="cuda", dtype=torch.bfloat16, backend="triton")
    other, ours = compat.GRU(512, 512, **options), compat.GRU(512, 512, num_layers=4, **options)
    x, found = torch.randn(1000, 16, 512, device="cuda", dtype=torch.bfloat16), []
    for overlapped in (True, False):
        if not overlapped:
            monkeypatch.setattr(stacking, "reasons_against_overlap", lambda *_: ["in turn"])
        loss = other(x)[0].float().square().sum() + ours(x)[0].float().square().sum()
        assert ("overlap" in ours.last_decision.layers) == overlapped
        found.append(torch.autograd.grad(loss, [*other.parameters(), *ours.parameters()]))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 3e-2 * b.abs().max()
