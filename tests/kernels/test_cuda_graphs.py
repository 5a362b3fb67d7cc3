"""CUDA graphs, host synchronisation and memory on a GPU: capture of forward, backward and a stream's step."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

import tritongru
from tritongru.compat import GRU
from tritongru.stream import Stream

pytestmark = pytest.mark.gpu

# One program, several that exchange, and one launch per step: see docs/kernels.md, Four schedules.
UNITS = [32, 256, 1536]
CLOSE = dict(rtol=1e-3, atol=1e-4)


@contextlib.contextmanager
def no_host_sync():
    """Make every wait of the host for the device an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def no_allocation():
    """Assert that the caching allocator hands out nothing inside the block."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    yield
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def capture(function, warm_up: int = 3) -> torch.cuda.CUDAGraph:
    """Run `function` a few times on another stream, as torch asks for, then capture it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("extra", ["plain", "lengths", "resets"])
def test_forward_is_captured(units, extra):
    T, B = 7, 5
    layer = GRU(16, units, bidirectional=True, device="cuda", backend="triton")
    x, kwargs = torch.randn(T, B, 16, device="cuda"), {}
    if extra == "lengths":
        kwargs["lengths"] = torch.randint(0, T + 1, (B,), device="cuda")
    elif extra == "resets":
        kwargs["resets"] = torch.rand(T, B, device="cuda") < 0.3
    found = {}

    @torch.no_grad()
    def forward():
        found["output"], found["h_n"] = layer(x, **kwargs)

    graph = capture(forward)
    assert layer.last_decision.backend == "triton"
    x.copy_(torch.randn_like(x))
    if extra == "lengths":
        kwargs["lengths"].random_(0, T + 1)
    with no_host_sync(), no_allocation():
        graph.replay()
    with torch.no_grad():
        expected = layer(x, backend="reference", **kwargs)
    torch.testing.assert_close((found["output"], found["h_n"]), expected, **CLOSE)


@pytest.mark.parametrize("units", UNITS)
def test_forward_and_backward_are_captured(units):
    T, B = 7, 5
    layer = GRU(16, units, 2, device="cuda", backend="triton")
    twin = copy.deepcopy(layer)
    x = torch.randn(T, B, 16, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (x,))
    for _ in range(2):
        fresh = torch.randn_like(x, requires_grad=True)
        leaf = fresh.detach().clone().requires_grad_()
        for module, value, options in ((graphed, fresh, {}), (twin, leaf, {"backend": "reference"})):
            module.zero_grad()
            output, h_n = module(value, **options)
            (output.square().sum() + h_n.sum()).backward()
        torch.testing.assert_close(fresh.grad, leaf.grad, **CLOSE)
        for (name, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, **CLOSE, msg=lambda m, name=name: f"d{name}: {m}")


def test_a_training_step_is_captured():
    layer = GRU(8, 64, device="cuda", backend="triton")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, loss = torch.randn(6, 4, 8, device="cuda"), torch.zeros((), device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=False)
        value = layer(x)[0].square().mean()
        value.backward()
        optimizer.step()
        loss.copy_(value.detach())

    graph = capture(step)
    before = float(loss)
    with no_host_sync(), no_allocation():
        for _ in range(5):
            graph.replay()
    assert 0 < float(loss) < before


@pytest.mark.parametrize("units", UNITS)
def test_a_step_of_a_stream_is_captured(units):
    layer = tritongru.GRU(units, input_size=8, device="cuda", backend="triton")
    stream, plain = Stream(layer), Stream(layer)
    frames = torch.randn(6, 3, 8, device="cuda")
    x, found = frames[0].clone(), {}

    @torch.no_grad()
    def step():
        found["output"] = stream.step(x)

    graph = capture(step)
    for _ in range(2):
        stream.reset()
        plain.reset()
        for frame in frames:
            x.copy_(frame)
            with no_host_sync(), no_allocation():
                graph.replay()
            with torch.no_grad():
                torch.testing.assert_close(found["output"], plain.step(frame), **CLOSE)
    stream.reset(rows=torch.tensor([True, False, True], device="cuda"))
    assert not stream.state[0].any() and stream.state[1].any()


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("extra", ["plain", "lengths", "resets"])
def test_a_call_does_not_wait_for_the_device(units, extra):
    T, B = 7, 5
    layer = GRU(16, units, 2, bidirectional=True, device="cuda", backend="triton")
    x, hx = torch.randn(T, B, 16, device="cuda"), torch.randn(4, B, units, device="cuda")
    kwargs = {}
    if extra == "lengths":
        kwargs["lengths"] = torch.randint(0, T + 1, (B,), device="cuda")
    elif extra == "resets":
        kwargs["resets"] = torch.rand(T, B, device="cuda") < 0.3

    def train():
        output, h_n = layer(x, hx, **kwargs)
        (output.sum() + h_n.sum()).backward()

    train()  # the first call compiles
    with no_host_sync():
        train()


def test_a_step_of_a_stream_does_not_wait_for_the_device():
    layer = tritongru.GRU(64, input_size=8, device="cuda")
    stream, x = Stream(layer), torch.randn(3, 8, device="cuda")
    with torch.no_grad():
        stream.step(x)
        with no_host_sync():
            for _ in range(3):
                stream.step(x)
