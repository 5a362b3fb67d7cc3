"""Rows of the batch in another order: the scans of the Triton kernels give each row the same bits."""

from __future__ import annotations

import pytest
import torch

from tritongru import launch
from tritongru.call.problem import Variant
from tritongru.environment import is_interpreted
from tritongru.tuning.configs import SCHEDULES, LaunchConfig


@pytest.mark.skipif(not is_interpreted(), reason="draws its tensors on the CPU")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_rows_in_another_order(reset_after: bool, schedule: str) -> None:
    T, B, U = 3, 19, 11
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    gx, u, h0, d_out = normal(T, B, 3 * U), normal(U, 3 * U), normal(B, U), normal(T, B, U)
    bias_n = normal(U) if reset_after else None
    order = torch.randperm(B, generator=generator)

    def scan(gx, h0, d_out) -> tuple:
        variant = Variant(reset_after=reset_after)
        out, last, _, gates = launch.scan_forward(gx, u, bias_n, h0, None, None, None, None, variant, True)
        entering = torch.cat((h0[None], out[:-1]))
        gradients = launch.scan_backward(d_out, None, gates, entering, u, None, None, None, variant, False)
        return out, gates, *gradients[:2], last[None], gradients[2][None]

    with launch.use_config(LaunchConfig(schedule, 16, 16, 16)):
        plain, permuted = scan(gx, h0, d_out), scan(gx[:, order], h0[order], d_out[:, order])
    for value, moved in zip(plain, permuted, strict=True):
        rows = value.dim() - 2
        assert torch.equal(value.index_select(rows, order) if value.numel() else value, moved)
