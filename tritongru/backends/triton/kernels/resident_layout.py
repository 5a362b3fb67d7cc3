"""Who holds what in the resident kernels: layouts and everything else they are compiled for.

The product of a program is rank 3, (WARPS_K, rows, units): warp w sums over the units of its own parts only, so no warp
repeats another's product. A part is what one load brings; with k_width of 16 bytes, the fragment that a lane wants is
16 bytes side by side in memory, for the state and for the weights in the same order. Gates are computed where each
thread owns elements of its own.

    along the sum   NK parts of WARPS_K * PART units, NK * WARPS_K * PART >= U
    across          WARPS_N warps share the BLOCK_H units of a program
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

from triton.experimental.gluon import language as gl

from ..tilings import MARKED, NO_EXCHANGE, Tiling, padded_width
from .resident_waits import Rows, make_publish, make_waits

# Of `Constants.REVERSE`: each member of a launch says for itself in which direction it runs.
EACH = 2


@dataclass(frozen=True)
class Constants:
    """What a resident kernel is compiled for; every field is a `gl.constexpr`.

    The first block is what a call asks for, the second the tiling, the third the layouts.
    """

    U: gl.constexpr
    KEYS_FIRST: gl.constexpr  # whether u is (U,3U) row by row, or the transpose of (3U,U)
    ACT: gl.constexpr
    REC_ACT: gl.constexpr
    APPROXIMATE: gl.constexpr  # whether tanh and sigmoid are the hardware's own, exact to 11 bits
    RESET_AFTER: gl.constexpr
    ZERO_MASKED: gl.constexpr
    REVERSE: gl.constexpr  # False, True or EACH
    GATE_Z: gl.constexpr
    GATE_R: gl.constexpr
    DROPS: gl.constexpr
    HAS_MASK: gl.constexpr
    HAS_RESET: gl.constexpr
    HAS_FRESH: gl.constexpr
    HAS_ROWS: gl.constexpr
    HAS_BIAS: gl.constexpr
    HAS_OUT: gl.constexpr
    SAVE_GATES: gl.constexpr
    SEPARATE: gl.constexpr
    FRESH_GRADIENT: gl.constexpr
    MEMBERS: gl.constexpr  # whether grid axis 2 counts scans
    PRECISION: gl.constexpr

    EXCHANGE: gl.constexpr
    BLOCK_B: gl.constexpr
    BLOCK_H: gl.constexpr
    WARPS_K: gl.constexpr
    NK: gl.constexpr
    PART: gl.constexpr
    SHARED_Z: gl.constexpr
    SHARED_R: gl.constexpr
    SHARED_N: gl.constexpr
    PIECE: gl.constexpr  # units of 16 bytes
    WIDTH: gl.constexpr  # units of a row of words, whole pieces
    VALUES: gl.constexpr  # arrays that the forward scan hands on for the gates z and r
    DIRECT: gl.constexpr  # whether what is multiplied are the states or gradients that are stored anyway
    HAS_TAIL: gl.constexpr  # whether the sum is padded
    WHOLE: gl.constexpr  # whether units end with a block

    mma: gl.constexpr
    left: gl.constexpr
    right: gl.constexpr
    sums: gl.constexpr
    own: gl.constexpr
    pieces: gl.constexpr
    meeting: gl.constexpr
    stay: gl.constexpr
    state: gl.constexpr
    publish: gl.constexpr  # `resident_waits.Assembly`
    waits_first: gl.constexpr  # `make_waits` for the state, or the candidate's gradients alone
    waits_second: gl.constexpr  # for r * h, or the gradients of all others

    def value(self, name: str):
        """Return a field as a plain value."""
        return getattr(self, name).value


# What a plain training call of the forward or backward kernel has.
PLAIN = dict(
    KEYS_FIRST=True, ACT=1, REC_ACT=2, APPROXIMATE=False, RESET_AFTER=True, ZERO_MASKED=False, REVERSE=False, GATE_Z=0,
    GATE_R=1, DROPS=0, HAS_MASK=False, HAS_RESET=False, HAS_FRESH=False, HAS_ROWS=False, HAS_BIAS=True, HAS_OUT=True,
    SAVE_GATES=True, SEPARATE=False, FRESH_GRADIENT=False, MEMBERS=False,
)  # fmt: skip


@functools.cache
def make_constants(kernel: str, tiling: Tiling, units: int, itemsize: int, precision: str, **asked) -> Constants:
    """Return the constants of a kernel, made once: the assembly of its waits is a long text.

    Args:
        kernel: "forward" or "backward".
        itemsize: bytes of an element. precision: of float32 products, "tf32". asked: over `PLAIN`.
    """
    count, part = tiling.parts(units, itemsize)
    block_b, block_h, warps_k, warps_n = tiling.block_b, tiling.block_h, tiling.warps_k, tiling.warps_n
    # Where the state lies in shared memory, matrices are loaded, which want 4 bytes side by side.
    k_width = (4 if tiling.exchange == NO_EXCHANGE else 16) // itemsize
    mma = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps_k, 1, warps_n], instr_shape=[1, 16, 8])
    sums = _sums_layout(block_b, block_h, warps_k, warps_n)
    asked = PLAIN | asked
    publish, waits, values = None, [None, None], _count_values(asked["DROPS"], asked["RESET_AFTER"])
    width, has_tail = padded_width(units, itemsize), count * part * warps_k > units
    # What programs multiply are results where rows are whole pieces, and nothing multiplies them.
    is_direct = tiling.exchange == MARKED and width == units and (kernel == "backward" or asked["DROPS"] == 0)
    if tiling.exchange == MARKED:
        arrays = (values, 1) if kernel == "forward" else (1, 3 if asked["RESET_AFTER"] else 2)
        span = warps_k * part * itemsize
        waits = [
            make_waits(Rows(count, n, block_b // 8, span, has_tail, itemsize, tiling.groups(units, itemsize, n)))
            for n in arrays
        ]
        publish = make_publish(itemsize, 2 if warps_k == 1 else _side(block_b, block_h, warps_k * warps_n))
    fixed = asked | dict(
        U=units, PRECISION=precision if itemsize == 4 else "ieee", EXCHANGE=tiling.exchange, BLOCK_B=block_b,
        BLOCK_H=block_h, WARPS_K=warps_k, NK=count, PART=part, SHARED_N=tiling.shared_gates >= 1,
        SHARED_R=tiling.shared_gates >= 2, SHARED_Z=tiling.shared_gates >= 3,
        PIECE=16 // itemsize, WIDTH=width, HAS_TAIL=has_tail, WHOLE=units % block_h == 0,
        VALUES=values, DIRECT=is_direct,
        mma=mma, left=gl.DotOperandLayout(0, mma, k_width), right=gl.DotOperandLayout(1, mma, k_width), sums=sums,
        # A sum that one warp has alone stays where the product left it.
        own=gl.SliceLayout(0, mma if warps_k == 1 else sums),
        pieces=_piece_layout(warps_k, warps_n, block_b),
        meeting=gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]),
        stay=gl.SwizzledSharedLayout(k_width, 1, 4, [1, 2, 0]),
        state=gl.SwizzledSharedLayout(16 // itemsize, 1, 8, [2, 1, 0]),
        publish=publish, waits_first=waits[0], waits_second=waits[1],
    )  # fmt: skip
    names = [field.name for field in fields(Constants)]
    if unknown := fixed.keys() - set(names):
        raise TypeError(f"unknown constants {sorted(unknown)}")
    return Constants(**{name: gl.constexpr(fixed[name]) for name in names})


def _count_values(drops: int, reset_after: bool) -> int:
    """Return how many arrays the forward scan hands on before the candidate's product: one for each mask there is."""
    return 1 if drops < 3 else 3 if reset_after else 2


def _side(block_b: int, block_h: int, warps: int) -> int:
    """Return the elements beside each other that a lane has where sums have met."""
    return min(8, max(1, block_b * block_h // (32 * warps)), block_h)


def _sums_layout(block_b: int, block_h: int, warps_k: int, warps_n: int):
    """All WARPS_K sums of an element in one thread; as many elements side by side as give each thread its own."""
    warps = warps_k * warps_n
    side = _side(block_b, block_h, warps)
    across = min(32, block_h // side)
    return gl.BlockedLayout([warps_k, 1, side], [1, 32 // across, across], [1, warps, 1], [2, 1, 0])


def _piece_layout(warps_k: int, warps_n: int, block_b: int):
    """Of (WARPS_K, BLOCK_B, 4): a lane has the pieces of 16 bytes of each part that its fragment wants."""
    rows = [[0, 8 << i, 0] for i in range((block_b // 8).bit_length() - 1)]
    lanes = [[0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    same = [[0, 0, 0]] * (warps_n.bit_length() - 1)
    warps = same + [[1 << i, 0, 0] for i in range(warps_k.bit_length() - 1)]
    return gl.DistributedLinearLayout(rows, lanes, warps, [], [warps_k, block_b, 4])
