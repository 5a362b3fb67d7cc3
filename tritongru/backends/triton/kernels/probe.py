"""A kernel that does nothing but exchange: to measure what a step pays for it, and to test it alone.

    gathered = sum over rounds of sum over units of round_value(round, row, unit)

Each round, every program publishes its block and gathers the blocks of all programs of its tile, as a scan step does.
Programs that do not wait exchange by launches of one round each: what is gathered then is the launch before.
Values are whole numbers up to 250, exact in every dtype, and differ from round to round: a stale one changes the sum.
"""

import triton
import triton.language as tl

from .exchange import announce, await_round


@triton.jit
def round_value(round, o_row, o_unit):
    """What the owner of `o_unit` publishes for `o_row` in `round`."""
    return ((round & 0xFFFF) * 7 + o_row * 3 + o_unit) % 251


@triton.jit(do_not_specialize=["first", "rounds", "patience"])
def exchange_kernel(blocks, board, gathered, faults, first, rounds, patience, U, C: tl.constexpr):
    """Exchange `rounds` times, from round `first + 1`; the grid is (programs, tiles).

    | pointer | shape | dtype |
    |---|---|---|
    | blocks | (2,tiles,BLOCK_B,U) by the round's parity | io |
    | board | (tiles,TILE) of which the first is the tile's counter, begun at programs * first | int32 |
    | gathered | (tiles,programs,BLOCK_B) | int32 |
    | faults | (tiles,) zeros | int32 |
    """
    i_h, i_b = tl.program_id(0), tl.program_id(1)
    programs, tiles = tl.num_programs(0), tl.num_programs(1)
    o_row = tl.arange(0, C.BLOCK_B)
    o_h = i_h * C.BLOCK_H + tl.arange(0, C.BLOCK_H)
    m_bh = (o_row[:, None] >= 0) & (o_h < U)[None, :]
    io: tl.constexpr = blocks.dtype.element_ty
    slot_size = tiles * C.BLOCK_B * U
    tile = i_b * C.BLOCK_B * U
    b_sum = tl.zeros((C.BLOCK_B,), tl.int32)
    round = first

    for _ in range(rounds):
        round += 1
        o_slot = (round & 1) * slot_size + tile
        b_own = round_value(round, i_b * C.BLOCK_B + o_row[:, None], o_h[None, :]).to(tl.float32)
        o_bh = o_slot + o_row[:, None] * U + o_h[None, :]
        tl.store(blocks + o_bh, b_own.to(io), mask=m_bh)
        announce(board + i_b * C.TILE, C)
        patience = await_round(board + i_b * C.TILE, round, programs, patience, C)
        if not C.WAITS:
            o_slot = ((round - 1) & 1) * slot_size + tile
        b_sum += gather(blocks, o_slot, U, o_row, C)

    tl.store(gathered + (i_b * programs + i_h) * C.BLOCK_B + o_row, b_sum)
    if patience == 0:
        tl.store(faults + i_b, 1)


@triton.jit
def gather(blocks, o_slot, U, o_row, C: tl.constexpr):
    """Return the sums of one round's rows, (BLOCK_B,)."""
    b_total = tl.zeros((C.BLOCK_B, C.BLOCK_K), tl.float32)
    for k in tl.static_range(C.NK):
        o_k = k * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
        m_bk = (o_row[:, None] >= 0) & (o_k < U)[None, :]
        o_bk = o_slot + o_row[:, None] * U + o_k[None, :]
        b_total += tl.load(blocks + o_bk, mask=m_bk, other=0.0, cache_modifier=".cg").to(tl.float32)
    return tl.sum(b_total, 1).to(tl.int32)
