"""What a kernel is compiled for: one frozen value, made by one function, for launches, the probe and `ahead`.

Which of a kernel's arguments are there is not among the constants: an argument that is None is compiled away.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import torch
import triton.language as tl

from ...activations import TABLE
from ...call.problem import Variant
from ...environment import is_interpreted
from ...tuning.configs import COUNTER_STRIDE, SINGLE, LaunchConfig, chunks_in_flight

# What each direction multiplies at once: the state, or three gradients.
PLANES = {"forward": 1, "backward": 3}
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, repr=False)
class Constants:
    """The argument `C` of the kernels; each field a `tl.constexpr`, since Triton takes no plain number from a value.

    Attributes:
        BLOCK_B, BLOCK_H, BLOCK_K: rows and units of a program, and units of a chunk of its product.
        NK: chunks of a product. GROUP: how many are loaded before the first is multiplied.
        SINGLE: whether one program has all units. STREAM: whether the weights are read at every step.
        WAITS: whether the programs of a tile wait for each other, kernels/exchange.py.
        PTX: whether instructions of NVIDIA devices can be written.
        PHASE: the part of a step; 0: all of it.
        ACT, REC_ACT: `kernel_id` of the activations. RESET_AFTER, ZERO_MASKED, REVERSE: of `Variant`.
        GATE_Z, GATE_R: where the two stand in packed gates. DROPS: recurrent dropout masks, 0, 1 or 3.
        TILE: words from the counter of one tile to that of the next. ZONE_ROWS: whether zoneout has a value for each
            step and row, or one row for all.
        NORM, JOINT, EPSILON: whether sums are normalised, together with those of the input, and what is added to their
            variance, see kernels/norms.py. COUNTED: how many units a norm is over, where that is not all of them, or 0.
        DOT: type of a product's operands. PRECISION: of float32 products.
    """

    BLOCK_B: tl.constexpr
    BLOCK_H: tl.constexpr
    BLOCK_K: tl.constexpr
    NK: tl.constexpr
    GROUP: tl.constexpr
    SINGLE: tl.constexpr
    STREAM: tl.constexpr
    WAITS: tl.constexpr
    PTX: tl.constexpr
    PHASE: tl.constexpr
    ACT: tl.constexpr
    REC_ACT: tl.constexpr
    RESET_AFTER: tl.constexpr
    ZERO_MASKED: tl.constexpr
    REVERSE: tl.constexpr
    GATE_Z: tl.constexpr
    GATE_R: tl.constexpr
    DROPS: tl.constexpr
    TILE: tl.constexpr
    ZONE_ROWS: tl.constexpr
    NORM: tl.constexpr
    JOINT: tl.constexpr
    EPSILON: tl.constexpr
    COUNTED: tl.constexpr
    DOT: tl.constexpr
    PRECISION: tl.constexpr

    # Triton asks for the text or the hash at every launch, to find the compiled kernel.
    @functools.cached_property
    def _text(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name).value!r}" for field in fields(self))

    def __repr__(self) -> str:
        return f"Constants({self._text})"

    def __hash__(self) -> int:
        return hash(self._text)


def current_backend() -> str:
    """Return what kernels launched here run on: "interpreter", "cuda" or "hip"."""
    if is_interpreted():
        return "interpreter"
    return "cuda" if torch.version.hip is None else "hip"


@functools.lru_cache(maxsize=256)
def make_constants(
    config: LaunchConfig,
    units: int,
    dtype: torch.dtype,
    backend: str,
    planes: int = 1,
    variant: Variant = Variant(),  # noqa: B008 - frozen
    drops: int = 0,
    precision: str = "ieee",
    phase: int = 0,
    zone_rows: bool = False,
    counted: int = 0,
) -> Constants:
    """Return the constants of one launch.

    Args:
        config, units, dtype: what is launched. backend: as `current_backend`. planes: of PLANES.
        variant: of the GRU. drops: recurrent dropout masks. precision: of float32 products. phase: of a step.
        zone_rows, counted: as of `Constants`.
    """
    chunks = -(-units // config.block_k)
    interpreted = backend == "interpreter"
    values = dict(
        BLOCK_B=config.block_b,
        BLOCK_H=config.block_h,
        BLOCK_K=config.block_k,
        NK=chunks,
        GROUP=chunks_in_flight(config, chunks, dtype.itemsize, planes),
        SINGLE=config.schedule == SINGLE,
        STREAM=config.streams,
        WAITS=config.waits,
        PTX=backend == "cuda",
        PHASE=phase,
        ACT=TABLE[variant.activation].kernel_id,
        REC_ACT=TABLE[variant.recurrent_activation].kernel_id,
        RESET_AFTER=variant.reset_after,
        ZERO_MASKED=variant.zero_output_for_mask,
        REVERSE=variant.reverse,
        GATE_Z=int(variant.reset_gate_first),
        GATE_R=1 - int(variant.reset_gate_first),
        DROPS=drops,
        TILE=COUNTER_STRIDE,
        ZONE_ROWS=zone_rows,
        NORM=variant.layer_norm is not None,
        JOINT=variant.layer_norm == "joint",
        EPSILON=variant.epsilon,
        COUNTED=counted,
        # The interpreter's half-precision products are wrong on some versions; float32 holds them exactly.
        DOT=tl.float32 if interpreted else _TYPES[dtype],
        PRECISION="ieee" if interpreted or dtype != torch.float32 else precision,
    )
    return Constants(**{name: tl.constexpr(value) for name, value in values.items()})
