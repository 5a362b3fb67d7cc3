"""Two streams, two devices, repeated launches: programs that wait for each other never wait for another launch's."""

from __future__ import annotations

import pytest
import torch

from tritongru.compat import GRU

pytestmark = pytest.mark.gpu

# One program a tile, and several that exchange: see docs/kernels.md, Four schedules.
UNITS = [32, 256]


def train(layer: GRU, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs, the last state and every gradient of one call."""
    layer.zero_grad()
    output, h_n = layer(x)
    (output.square().sum() + h_n.sum()).backward()
    assert layer.last_decision.backend == "triton"
    return [output.detach(), h_n.detach(), *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("units", UNITS)
def test_two_streams_give_the_serial_bits(units: int) -> None:
    torch.manual_seed(0)
    layers = [GRU(16, units, device="cuda", backend="triton") for _ in range(2)]
    inputs = [torch.randn(200, 16, 16, device="cuda") for _ in range(2)]
    expected = [train(layer, x) for layer, x in zip(layers, inputs, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(10):
        found = []
        for layer, x, stream in zip(layers, inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(train(layer, x))
        torch.cuda.synchronize()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("units", UNITS)
def test_a_device_that_is_not_the_current_one(units: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    torch.manual_seed(0)
    first = GRU(16, units, device="cuda:0", backend="triton")
    second = GRU(16, units, device="cuda:1", backend="triton")
    second.load_state_dict(first.state_dict())
    x = torch.randn(50, 16, 16, device="cuda:0")
    with torch.cuda.device(0):
        found = train(second, x.to("cuda:1"))
        expected = train(first, x)
    assert all(value.device.index == 1 for value in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())


@pytest.mark.parametrize("units", UNITS)
def test_a_thousand_launches_in_a_row(units: int) -> None:
    torch.manual_seed(0)
    layer = GRU(16, units, device="cuda", backend="triton").requires_grad_(False)
    x = torch.randn(20, 16, 16, device="cuda")
    expected = layer(x)
    for _ in range(1000):
        found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
