"""A row of the batch has the same bits wherever it stands, and whatever comes after its end, in the kernels' scans."""

from __future__ import annotations

import pytest
import torch

from tritongru.backends.triton import scan as launch
from tritongru.call.problem import Variant
from tritongru.environment import is_interpreted
from tritongru.tuning.configs import SCHEDULES, LaunchConfig

T, B, U = 4, 19, 11

pytestmark = [
    pytest.mark.bits,
    pytest.mark.skipif(not is_interpreted(), reason="draws its tensors on the CPU"),
    pytest.mark.usefixtures("sums_in_order"),
    pytest.mark.parametrize("schedule", SCHEDULES),
    pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"]),
]


def draw(reset_after: bool) -> tuple[torch.Tensor | None, ...]:
    """Return gx, u, bias_n, h0 and the cotangent of the outputs; two tiles, the second with three rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((T, B, 3 * U), (U, 3 * U), (U,), (B, U), (T, B, U))
    gx, u, bias_n, h0, d_out = (torch.randn(*shape, generator=generator) for shape in shapes)
    return gx, u, bias_n if reset_after else None, h0, d_out


def scan(schedule: str, variant: Variant, gx, u, bias_n, h0, d_out, mask=None) -> tuple[torch.Tensor, ...]:
    """Return what has a row for each row of the batch, in its second last axis."""
    with launch.use_config(LaunchConfig(schedule, 16, 16, 16)):
        out, last, entering, gates = launch.scan_forward(gx, u, bias_n, h0, mask, None, None, None, variant, True)
        if mask is None:
            entering = torch.cat((h0[None], out[:-1]))
        d_gx, d_gh_n, d_h0, _ = launch.scan_backward(d_out, None, gates, entering, u, mask, None, None, variant, False)
    gradients = (d_gx, d_gh_n) if variant.reset_after else (d_gx,)
    return out, gates, *gradients, last[None], d_h0[None]


def test_rows_in_another_order(reset_after: bool, schedule: str) -> None:
    gx, u, bias_n, h0, d_out = draw(reset_after)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    variant = Variant(reset_after=reset_after)
    plain = scan(schedule, variant, gx, u, bias_n, h0, d_out)
    permuted = scan(schedule, variant, gx[:, order], u, bias_n, h0[order], d_out[:, order])
    for value, moved in zip(plain, permuted, strict=True):
        assert torch.equal(value.index_select(value.dim() - 2, order), moved)


def test_a_length_gives_the_bits_of_a_shorter_scan(reset_after: bool, schedule: str) -> None:
    gx, u, bias_n, h0, d_out = draw(reset_after)
    lengths = torch.arange(B) % (T + 1)
    variant = Variant(reset_after=reset_after, zero_output_for_mask=True)
    mask = torch.arange(T)[:, None] < lengths
    whole = scan(schedule, variant, gx, u, bias_n, h0, d_out, mask)
    for length in range(1, T + 1):
        short = scan(schedule, variant, gx[:length], u, bias_n, h0, d_out[:length])
        rows = lengths == length
        *by_step, last, d_h0 = whole
        for value, right in zip((*(v[..., :length, :, :] for v in by_step), last, d_h0), short, strict=True):
            assert torch.equal(value[..., rows, :], right[..., rows, :])
