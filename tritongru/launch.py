"""Allocate, choose a grid, launch: the only importer of the kernels.

Offers the two functions of `eager.py` with a `precision` more, on the tensor's own device.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping

import torch
import triton.language as tl
from torch import Tensor

from .activations import TABLE
from .call.errors import ExchangeError
from .call.problem import Variant
from .environment import is_interpreted
from .kernels.backward import gru_backward_kernel
from .kernels.forward import gru_forward_kernel
from .rows import plan_rows
from .tuning import choices, configs
from .tuning.configs import SINGLE, STEPS, Device, LaunchConfig
from .tuning.devices import device_limits
from .tuning.tables import Key

# Polls before a fault: seconds on a GPU, where a healthy exchange takes microseconds; the interpreter polls slowly.
PATIENCE = 1 << 16 if is_interpreted() else 1 << 22

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_forced = threading.local()
_pending: deque = deque()


@contextlib.contextmanager
def use_config(config: LaunchConfig | Mapping[str, LaunchConfig] | None):
    """Launch with `config` inside the block, on this thread: for tuning and tests.

    Args:
        config: for both kernels, or for those it names ("forward", "backward"); None: as outside.
    """
    before = getattr(_forced, "config", None)
    _forced.config = config
    try:
        # A backward pass on a GPU would run in a thread of its own, which knows nothing of `config`.
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _forced.config = before


def choose_config(
    kernel: str, u: Tensor, batch: int, variant: Variant, precision: str, drop: Tensor | None, masked: bool,
    device: Device,
) -> LaunchConfig:  # fmt: skip
    """Return the configuration of `kernel` on `device` for recurrent weights `u (U,3U)` and `batch` rows."""
    forced = getattr(_forced, "config", None)
    if isinstance(forced, Mapping):
        forced = forced.get(kernel)
    if forced is not None:
        return forced
    key = Key.of(kernel, u.dtype, precision, u.shape[0], drop is not None, masked, not variant.reset_after)
    return choices.choose(key, batch, device).config


def scan_forward(
    gx: Tensor,
    u: Tensor,
    bias_n: Tensor | None,
    h0: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    fresh: Tensor | None,
    drop: Tensor | None,
    variant: Variant,
    save_gates: bool,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the recurrence; arguments and results as `eager.scan_forward`."""
    T, B, _ = gx.shape
    U = u.shape[0]
    separate = mask is not None or resets is not None
    out = gx.new_empty(T, B, U)
    gates = gx.new_empty((4 if variant.reset_after else 3, T, B, U) if save_gates else (0,))
    if T == 0 or B == 0:
        return out, h0.clone(), gx.new_empty((T, B, U) if separate else (0,)), gates
    gx, bias_n, fresh, drop = gx.contiguous(), _contiguous(bias_n), _contiguous(fresh), _contiguous(drop)
    mask, resets = _as_bytes(mask), _as_bytes(resets)

    first = T - 1 if variant.reverse else 0
    start = h0
    if resets is not None:
        restart = resets[first].bool()[:, None]
        if fresh is None:
            # Not `where` with a number: that copies the number to the device, and the host waits for it.
            start = h0.masked_fill(restart, 0)
        else:
            start = torch.where(restart, fresh[first] if fresh.dim() == 3 else fresh, h0)
    start = start.contiguous()
    # One step more than T, so that the state entering the first step has a place beside the others.
    states = gx.new_empty(T + 1, B, U) if separate else None
    if states is None:
        leaving, entering = out, gx.new_empty(0)
    else:
        states[T if variant.reverse else 0] = start
        leaving, entering = (states[:T], states[1:]) if variant.reverse else (states[1:], states[:T])
    carry = start.to(torch.float32, copy=True)

    device = device_limits(u.device)
    config = choose_config("forward", u, B, variant, precision, drop, separate, device)
    middle = z_carry = None
    if not variant.reset_after and config.schedule != SINGLE:
        # Tagged words carry it themselves.
        middle = None if config.waits and config.exchange == "tagged" else torch.empty_like(start)
        z_carry = torch.empty_like(carry) if config.schedule == STEPS else None
    workspace = _Workspace(config, u, B, device, planes=1)
    rows, stops = plan_rows(mask, resets, variant.reverse, workspace.grid, device.processors)
    flags = dict(
        HAS_FRESH=fresh is not None, HAS_BIAS=bias_n is not None, SAVE_GATES=save_gates, SEPARATE=separate,
        HAS_ROWS=rows is not None,
        **workspace.constants(variant, mask, resets, drop, precision),
    )  # fmt: skip
    s_fresh_t = B * U if fresh is not None and fresh.dim() == 3 else 0

    def launch(begin: int, end: int, phase: int, h_first: Tensor) -> None:
        for tile, grid in workspace.waves():
            gru_forward_kernel[grid](
                gx, u, bias_n, h_first, leaving, out, gates, carry, middle, z_carry, mask, resets, fresh, drop,
                rows, stops, workspace.board, workspace.faults, T, B, U, begin, end, tile, PATIENCE, u.stride(0),
                u.stride(1), s_fresh_t, workspace.s_tile, PHASE=phase, **flags, **workspace.options(),
            )  # fmt: skip

    with _on(gx.device):
        if config.schedule == STEPS:
            for step in range(T):
                before = start if step == 0 else leaving[T - step if variant.reverse else step - 1]
                for phase in (0,) if variant.reset_after else (1, 2):
                    launch(step, step + 1, phase, before)
        else:
            launch(0, T, 0, start)
        workspace.check()
    return out, carry.to(h0.dtype, copy=True), entering, gates


def scan_backward(
    d_out: Tensor | None,
    d_last: Tensor | None,
    gates: Tensor,
    entering: Tensor,
    u: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    drop: Tensor | None,
    variant: Variant,
    fresh_gradient: bool,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the reverse scan; arguments and results as `eager.scan_backward`."""
    T, B, U = entering.shape
    d_gx = entering.new_empty(T, B, 3 * U)
    d_gh_n = entering.new_empty((T, B, U) if variant.reset_after else (0,))
    d_fresh = entering.new_empty((T, B, U) if fresh_gradient else (0,))
    carry = torch.zeros(B, U, device=u.device) if d_last is None else d_last.to(torch.float32, copy=True).contiguous()
    if T == 0 or B == 0:
        return d_gx, d_gh_n, carry.to(entering.dtype, copy=True), d_fresh
    d_out, drop = _contiguous(d_out), _contiguous(drop)
    gates, entering = gates.contiguous(), entering.contiguous()
    mask, resets = _as_bytes(mask), _as_bytes(resets)
    y_carry = None if mask is None else torch.zeros_like(carry)

    masked = mask is not None or resets is not None
    device = device_limits(u.device)
    config = choose_config("backward", u, B, variant, precision, drop, masked, device)
    workspace = _Workspace(config, u, B, device, planes=3)
    rows, stops = plan_rows(mask, resets, variant.reverse, workspace.grid, device.processors)
    flags = dict(
        HAS_OUT=d_out is not None, FRESH_GRADIENT=fresh_gradient, HAS_ROWS=rows is not None,
        **workspace.constants(variant, mask, resets, drop, precision),
    )  # fmt: skip

    def launch(begin: int, end: int, phase: int) -> None:
        for tile, grid in workspace.waves():
            gru_backward_kernel[grid](
                d_out, gates, entering, u, mask, resets, drop, d_gx, d_gh_n, d_fresh, carry, y_carry,
                rows, stops, workspace.board, workspace.faults, T, B, U, begin, end, tile, PATIENCE, u.stride(0),
                u.stride(1), workspace.s_tile, PHASE=phase, **flags, **workspace.options(),
            )  # fmt: skip

    with _on(u.device):
        if config.schedule == STEPS:
            for step in range(T):
                for phase in (1, 3) if variant.reset_after else (1, 2, 3):
                    launch(step, step + 1, phase)
        else:
            launch(0, T, 0)
        workspace.check()
    return d_gx, d_gh_n, carry.to(entering.dtype, copy=True), d_fresh


class _Workspace:
    """The grid of one scan and what its programs share."""

    def __init__(self, config: LaunchConfig, u: Tensor, batch: int, device: Device, planes: int):
        """`planes`: arrays (B,U) that programs exchange in a round."""
        self.config, self.u, self.planes = config, u, planes
        U = u.shape[0]
        tiles = -(-batch // config.block_b)
        self.grid = (1 if config.schedule == SINGLE else -(-U // config.block_h), tiles)
        if config.schedule == SINGLE and (config.block_h < U or config.block_k != config.block_h):
            raise ValueError(f"`config` {config} does not hold all of units={U} in one program")
        self.board = self.faults = None
        # Where programs cannot be resident together the launch has to tell: the driver, or the interpreter's harness.
        self.tiles_at_once = config.waits and configs.tiles_at_once(config, U, device) or tiles
        self.s_tile = configs.signals_per_tile(self.grid[0])
        if config.waits:
            self._check_exchange()
            # Cleared at each launch: a graph may replay it, and then no round number of the host's would be new.
            self.faults = torch.zeros(tiles, dtype=torch.int32, device=u.device)
            if config.exchange == "tagged":
                words = torch.int64 if u.element_size() == 4 else torch.int32
                self.board = torch.zeros(2, planes, batch, U, dtype=words, device=u.device)
            else:
                self.board = torch.zeros(tiles, self.s_tile, dtype=torch.int32, device=u.device)

    def waves(self) -> Iterator[tuple[int | None, tuple[int, int]]]:
        """Yield the first tile and the grid of each launch: programs that wait for each other must run at once.

        None in place of 0 where there is one launch: the kernel then is compiled without the argument.
        """
        programs, tiles = self.grid
        if self.tiles_at_once >= tiles:
            yield None, self.grid
            return
        for tile in range(0, tiles, self.tiles_at_once):
            yield tile, (programs, min(self.tiles_at_once, tiles - tile))

    def _check_exchange(self) -> None:
        if torch.version.hip is not None and self.config.exchange not in configs.exchanges("hip"):
            raise ValueError(
                f"`config.exchange` {self.config.exchange!r} is not sound on AMD devices, see docs/design.md"
            )

    def constants(
        self, variant: Variant, mask: Tensor | None, resets: Tensor | None, drop: Tensor | None, precision: str
    ) -> dict:
        """Return the constants both kernels take."""
        config, U = self.config, self.u.shape[0]
        interpreted, chunks = is_interpreted(), -(-U // config.block_k)
        # The interpreter's half-precision products are wrong on some versions; float32 holds them exactly.
        dot = tl.float32 if interpreted else _TYPES[self.u.dtype]
        return dict(
            ACT=TABLE[variant.activation].kernel_id, REC_ACT=TABLE[variant.recurrent_activation].kernel_id,
            RESET_AFTER=variant.reset_after, ZERO_MASKED=variant.zero_output_for_mask, REVERSE=variant.reverse,
            GATE_Z=int(variant.reset_gate_first), GATE_R=1 - int(variant.reset_gate_first),
            DROPS=0 if drop is None else drop.shape[0], HAS_MASK=mask is not None, HAS_RESET=resets is not None,
            BLOCK_B=config.block_b, BLOCK_H=config.block_h, BLOCK_K=config.block_k, NK=chunks,
            GROUP=configs.chunks_in_flight(config, chunks, self.u.element_size(), self.planes),
            SINGLE=config.schedule == SINGLE, PERSISTENT=config.waits, STREAM=config.streams,
            EXCHANGE=config.exchange, POLLS=configs.polls(self.grid[0], config.num_warps),
            PTX=not interpreted and torch.version.hip is None, DOT=dot,
            PRECISION="ieee" if interpreted or self.u.dtype != torch.float32 else precision,
        )  # fmt: skip

    def options(self) -> dict:
        """Return the launch options; a cooperative launch fails where its grid cannot be resident at once."""
        if is_interpreted():
            return {}
        return dict(num_warps=self.config.num_warps, launch_cooperative_grid=self.config.waits)

    def check(self) -> None:
        """Raise ExchangeError for a fault of this scan (CPU) or an earlier one (GPU, without waiting for it)."""
        if self.faults is None:
            return
        if not self.faults.is_cuda:
            _raise_fault(self.faults)
            return
        if torch.cuda.is_current_stream_capturing():
            return
        host = torch.empty_like(self.faults, device="cpu", pin_memory=True).copy_(self.faults, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        _pending.append((event, host))
        while _pending and _pending[0][0].query():
            _raise_fault(_pending.popleft()[1])


def _raise_fault(faults: Tensor) -> None:
    if bool(faults.any()):
        raise ExchangeError(
            f"programs of batch tiles {faults.nonzero().flatten().tolist()} waited too long for each other; "
            "the results of that call are NaN from that step on"
        )


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _as_bytes(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous().view(torch.uint8)


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
