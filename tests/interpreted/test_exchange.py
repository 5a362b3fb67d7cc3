"""The exchange between programs, run for real: one process per program, with random delays."""

import os
import time
from dataclasses import replace

import pytest
import torch
from processes import process_per_program

from tritongru.backends.eager import continuation
from tritongru.backends.triton import launching
from tritongru.backends.triton import scan as launch
from tritongru.backends.triton.kernels import backward, forward
from tritongru.call.errors import ExchangeError
from tritongru.call.problem import Variant
from tritongru.tuning import configs
from tritongru.tuning.configs import Device, LaunchConfig

CONFIG = LaunchConfig("persistent", 16, 16, 16)


def draw(reset_after, B=3, T=5, U=37, masked=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.4

    mask = resets = None
    if masked:
        mask = torch.rand(T, B, generator=generator) < 0.7
        resets = torch.rand(T, B, generator=generator) < 0.3
    bias_n = normal(U) if reset_after else None
    return normal(T, B, 3 * U), normal(U, 3 * U), bias_n, normal(B, U), mask, resets, normal(B, U), None


def both_scans(module, arguments, variant, *extra):
    out, last, states, gates = module.scan_forward(*arguments, variant, True, *extra)
    gx, u, _, h0, mask, resets, _, drop = arguments
    order = range(out.shape[0])
    entering = states if states.dim() == 3 else torch.cat((h0[None], out[:-1]))
    assert len(order) == entering.shape[0]
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    results = module.scan_backward(
        gradient, gradient[0], gates, entering, u, mask, resets, drop, variant, resets is not None, *extra
    )
    return {
        name: value
        for name, value in zip(
            ("out", "last", "states", "gates", "d_gx", "d_gh_n", "d_h0", "d_fresh"),
            (out, last, states, gates, *results),
            strict=True,
        )
    }


def agree(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=2e-5, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}"
        )  # fmt: skip


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask-resets"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_programs_agree_with_eager_under_delays(reset_after, masked):
    variant = Variant(reset_after=reset_after)
    arguments = draw(reset_after, masked=masked)
    expected = both_scans(continuation, arguments, variant)
    with launch.use_config(CONFIG), process_per_program(delay=0.002, seed=masked):
        actual = both_scans(launch, arguments, variant, "ieee")
    agree(actual, expected)


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_weights_that_are_streamed(reset_after):
    variant = Variant(reset_after=reset_after)
    arguments = draw(reset_after, masked=not reset_after)
    expected = both_scans(continuation, arguments, variant)
    streamed = replace(CONFIG, schedule="streamed")
    with launch.use_config(streamed), process_per_program(delay=0.002):
        actual = both_scans(launch, arguments, variant, "ieee")
    agree(actual, expected)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask-resets"])
def test_more_tiles_than_fit_at_once_go_in_waves(masked, monkeypatch):
    """Three tiles of two programs where five programs fit: two tiles, then one; masked rows sorted over all tiles."""
    five = Device(5, 227 * 1024)
    monkeypatch.setattr(launch, "device_limits", lambda device: five)
    assert configs.count_waves(CONFIG, 20, 35, five) == 2
    launches = []
    whole = launching.waves

    def spy(grid, at_once):
        for first, part in whole(grid, at_once):
            launches.append((first, part))
            yield first, part

    monkeypatch.setattr(launching, "waves", spy)
    arguments = draw(True, B=35, T=3, U=20, masked=masked)
    expected = both_scans(continuation, arguments, Variant())
    with launch.use_config(CONFIG), process_per_program(delay=0.001):
        actual = both_scans(launch, arguments, Variant(), "ieee")
    assert launches == 2 * [(0, (2, 2)), (2, (2, 1))]
    if masked:
        expected["gates"] *= arguments[4][..., None]
        actual["gates"] *= arguments[4][..., None]
    agree(actual, expected)


def test_several_tiles_wait_only_for_their_own_programs():
    """Tiles that end at different steps, their rows taken in the order of their lengths."""
    variant = Variant()
    arguments = list(draw(True, B=19, T=4, U=20))
    arguments[4] = torch.arange(4)[:, None] < torch.tensor([1, 4] + [2] * 15 + [3, 0])
    expected = both_scans(continuation, arguments, variant)
    with launch.use_config(CONFIG), process_per_program(delay=0.001):
        actual = both_scans(launch, arguments, variant, "ieee")
    valid = arguments[4]
    expected["gates"], actual["gates"] = expected["gates"] * valid[..., None], actual["gates"] * valid[..., None]
    agree(actual, expected)


@pytest.mark.parametrize("module", [forward, backward])
def test_without_the_wait_the_result_is_wrong(module, monkeypatch):
    """The harness sees a missing wait; otherwise the tests above would prove nothing."""
    variant = Variant()
    arguments = draw(True)
    expected = both_scans(continuation, arguments, variant)
    monkeypatch.setattr(module, "await_round", lambda p, round, programs, patience, *_: patience)
    with launch.use_config(CONFIG), process_per_program(on_start=lambda x, y: time.sleep(0.2 * (x == 1))):
        actual = both_scans(launch, arguments, variant, "ieee")
    assert any(not torch.allclose(actual[name], expected[name], atol=1e-4) for name in expected)


def test_a_program_that_dies_becomes_an_error(monkeypatch):
    monkeypatch.setattr(launching, "PATIENCE", 200)

    def die(x, y):
        if x == 1:
            os._exit(0)

    with launch.use_config(CONFIG), process_per_program(on_start=die):
        with pytest.raises(ExchangeError, match="too long"):
            launch.scan_forward(*draw(True), Variant(), False)


def test_programs_in_one_process_cannot_wait_and_say_so(monkeypatch):
    monkeypatch.setattr(launching, "PATIENCE", 50)
    with launch.use_config(CONFIG), pytest.raises(ExchangeError, match="batch tiles \\[0\\]"):
        launch.scan_forward(*draw(True), Variant(), False)


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_the_backward_scan_says_so_too(monkeypatch, reset_after):
    monkeypatch.setattr(launching, "PATIENCE", 50)
    variant, arguments = Variant(reset_after=reset_after), draw(reset_after)
    out, _, _, gates = continuation.scan_forward(*arguments, variant, True)
    entering = torch.cat((arguments[3][None], out[:-1]))
    with launch.use_config(CONFIG), pytest.raises(ExchangeError, match="batch tiles \\[0\\]"):
        launch.scan_backward(out, None, gates, entering, arguments[1], None, None, None, variant, False)
