"""The grid of one scan, what its programs share, and how they are launched.

`scan` launches by it, `ahead` compiles by it. A wait that was too long is told by `check`: of a GPU's scan by a
later call, so that no call waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...call.problem import Variant
from ...environment import is_interpreted
from ...tuning import configs
from ...tuning.configs import COUNTER_STRIDE, SINGLE, Device, LaunchConfig
from . import launching
from .constants import PLANES, Constants, current_backend, make_constants
from .rows import plan_rows
from .waits import check_faults


class Workspace:
    """The grid of one scan, what its programs share, and how they are launched."""

    def __init__(self, direction: str, config: LaunchConfig, u: Tensor, batch: int, device: Device, counted: int = 0):
        """Args as follows.

        direction: "forward" or "backward". u: recurrent weights (U,3U). device: to run on. counted: of `Constants`.
        """
        self.config, self.u, self.planes, self.processors = config, u, PLANES[direction], device.processors
        self.counted = counted
        U = u.shape[0]
        tiles = -(-batch // config.block_b)
        self.grid = (1 if config.schedule == SINGLE else -(-U // config.block_h), tiles)
        if config.schedule == SINGLE and (config.block_h < U or config.block_k != config.block_h):
            raise ValueError(f"`config` {config} does not hold all of units={U} in one program")
        self.board = self.faults = None
        self.tiles_at_once = tiles
        if config.waits:
            # Where not even one tile's programs are resident together, the launch has to tell: the driver, or the
            # interpreter's harness.
            self.tiles_at_once = configs.tiles_at_once(config, U, device) or tiles
            # Cleared at each launch: a graph may replay it, and then no round number of the host's would be new.
            self.faults = torch.zeros(tiles, dtype=torch.int32, device=u.device)
            self.board = torch.zeros(tiles, COUNTER_STRIDE, dtype=torch.int32, device=u.device)

    def arguments(
        self, steps: int, batch: int, mask: Tensor | None, resets: Tensor | None, variant: Variant
    ) -> dict[str, Any]:
        """Return the arguments both kernels take for all steps in one launch; `mask` and `resets` as bytes or None."""
        if variant.layer_norm is not None and self.config.schedule != SINGLE:
            raise ValueError(f"`config` {self.config}: a norm needs the schedule {SINGLE!r}, which holds a whole row")
        rows, stops = plan_rows(mask, resets, variant.reverse, self.grid, self.processors)
        return dict(
            mask=mask, resets=resets, rows=rows, stops=stops, board=self.board, faults=self.faults,
            T=steps, B=batch, U=self.u.shape[0], step_begin=0, step_end=steps,
            s_u_k=self.u.stride(0), s_u_g=self.u.stride(1),
        )  # fmt: skip

    def launcher(self, kernel, variant: Variant, precision: str) -> Callable[..., None]:
        """Return a function that launches `kernel` with its arguments by name, for one phase of a step or all."""
        options: dict[str, Any] = {}
        if not is_interpreted():
            # A cooperative launch fails where its grid cannot be resident at once.
            options = dict(num_warps=self.config.num_warps, launch_cooperative_grid=self.config.waits)

        def launch(given: Mapping[str, Any], phase: int = 0) -> None:
            C = self.constants(current_backend(), variant, given, precision, phase)
            for tile, grid in launching.waves(self.grid, self.tiles_at_once):
                kernel[grid](**given, first_tile=tile, C=C, **options)

        return launch

    def constants(
        self, backend: str, variant: Variant, given: Mapping[str, Any], precision: str, phase: int = 0
    ) -> Constants:
        """Return what the kernel is compiled for; `given` are its arguments by name."""
        drop, zoneout = given["drop"], given["zoneout"]
        return make_constants(
            self.config, self.u.shape[0], self.u.dtype, backend, self.planes, variant,
            0 if drop is None else drop.shape[0], precision, phase, zoneout is not None and zoneout.dim() == 3,
            self.counted,
        )  # fmt: skip

    def check(self) -> None:
        """Raise ExchangeError for a fault of this scan (CPU) or an earlier one (GPU, without waiting for it)."""
        check_faults(self.faults)
