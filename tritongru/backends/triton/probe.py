"""Launch the exchange alone: what a step of a persistent schedule pays for its programs to meet.

For bench/exchange.py and the tests, which need the exchange without a scan around it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...environment import is_interpreted
from ...tuning.configs import COUNTER_STRIDE, PERSISTENT, STEPS, LaunchConfig
from .constants import Constants, current_backend, make_constants
from .kernels.probe import exchange_kernel
from .tilings import has_resident_kernels

# "marked" is that of the kernels with weights in registers.
METHODS = ("counter", "launch") + (("marked",) if has_resident_kernels() and torch.version.hip is None else ())
BLOCK_B, BLOCK_H, BLOCK_K = 16, 16, 64


class Probe:
    """Programs that exchange blocks of 16 rows by 16 units, in tiles of `programs`.

    Args:
        method: one of METHODS. programs: of a tile. tiles: that exchange independently of each other. dtype: of the
        values. device: where. first: rounds that count as done. num_warps: of a program.
    """

    def __init__(
        self, method: str, programs: int, tiles: int = 1, dtype=torch.bfloat16, device="cuda", first=0, num_warps=4
    ):
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
        self.method, self.programs, self.tiles = method, programs, tiles
        # Programs of one launch per round do not wait, and their exchange is none.
        schedule = STEPS if method == "launch" else PERSISTENT
        self.config = LaunchConfig(schedule, BLOCK_B, BLOCK_H, BLOCK_K, num_warps)
        self.units, self.round = programs * BLOCK_H, first

        def zeros(*shape: int, dtype=torch.int32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.blocks = zeros(2, tiles, BLOCK_B, self.units, dtype=dtype)
        self.gathered, self.faults = zeros(tiles, programs, BLOCK_B), zeros(tiles)
        self.board = zeros(tiles, COUNTER_STRIDE).fill_((programs * first + (1 << 31)) % (1 << 32) - (1 << 31))
        if method == "launch":
            self.blocks[first & 1] = self.values(first).to(dtype)

    def run(self, rounds: int, patience: int) -> None:
        """Exchange `rounds` times more, in one launch, or one launch each for "launch"."""
        if self.method == "marked":
            from .resident_probe import run_marked  # older versions of Triton have no Gluon

            run_marked(self, rounds, patience)
            return
        steps = [1] * rounds if self.method == "launch" else [rounds]
        for step in steps:
            exchange_kernel[(self.programs, self.tiles)](
                **self.arguments(step, patience), C=self.constants(current_backend()), **self.options()
            )
            self.round += step

    def arguments(self, rounds: int, patience: int) -> dict[str, Tensor | int]:
        """Return the kernel's arguments by name."""
        return dict(
            blocks=self.blocks, board=self.board, gathered=self.gathered, faults=self.faults,
            # The kernel counts in 32 bits, as the scans do.
            first=(self.round + (1 << 31)) % (1 << 32) - (1 << 31),
            rounds=rounds, patience=patience, U=self.units,
        )  # fmt: skip

    def constants(self, backend: str) -> Constants:
        """Return what the kernel is compiled for."""
        return make_constants(self.config, self.units, self.blocks.dtype, backend)

    def values(self, round: int) -> Tensor:
        """Return what is published in `round`, (tiles, BLOCK_B, units)."""
        row = torch.arange(self.tiles * BLOCK_B, device=self.blocks.device).view(self.tiles, BLOCK_B, 1)
        return ((round & 0xFFFF) * 7 + row * 3 + torch.arange(self.units, device=self.blocks.device)) % 251

    def expected(self, rounds: int) -> Tensor:
        """Return what every program has gathered after the last `run(rounds)`, (tiles, programs, BLOCK_B)."""
        last = [self.round - 1] if self.method == "launch" else range(self.round - rounds + 1, self.round + 1)
        total = sum(self.values(r).sum(-1) for r in last)
        return total.to(torch.int32)[:, None].expand(self.gathered.shape)  # type: ignore[union-attr]

    def options(self) -> dict:
        if is_interpreted():
            return {}
        return dict(num_warps=self.config.num_warps, launch_cooperative_grid=self.config.waits)
