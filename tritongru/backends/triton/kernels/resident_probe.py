"""A kernel that does nothing but exchange as the resident kernels do, beside `probe.exchange_kernel`.

    gathered = sum over rounds of sum over units of (7 round + 3 row + unit) % 251

Each round every program publishes its block and asks for the rows of all programs of its tile, group by group.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .resident_exchange import ask, part_of, places_of, publish, stores_of, units_of, wait_for


@gluon.jit(do_not_specialize=["first", "rounds", "patience"])
def marked_exchange_kernel(words, gathered, faults, first, rounds, patience, C: gl.constexpr):
    """Exchange `rounds` times, from round `first + 1`; the grid is (programs, tiles).

    | pointer | shape | dtype |
    |---|---|---|
    | words | (rounds,tiles * BLOCK_B,U) marks | io |
    | gathered | (tiles,programs,BLOCK_B) | int32 |
    | faults | (tiles,) zeros | int32 |
    """
    io: gl.constexpr = words.dtype.element_ty
    PARTS: gl.constexpr = C.NK // len(C.waits_first)
    i_h, i_b = gl.program_id(0), gl.program_id(1)
    B = gl.num_programs(1) * C.BLOCK_B
    o_b = i_b * C.BLOCK_B + gl.arange(0, C.BLOCK_B, gl.SliceLayout(1, C.own))
    o_h = i_h * C.BLOCK_H + gl.arange(0, C.BLOCK_H, gl.SliceLayout(0, C.own))
    own_word = o_b[:, None] * C.WIDTH + o_h[None, :]
    stores = stores_of(o_b >= 0, o_h, io, C)
    place, last = places_of(words, i_b, B, C.WIDTH, C)
    k_all = units_of(C)
    total = gl.zeros([C.WARPS_K, C.BLOCK_B, C.PART], gl.float32, C.left)
    for step in range(rounds):
        value = (((first + step + 1) & 0xFFFF) * 7 + o_b[:, None] * 3 + o_h[None, :]) % 251
        p = words + step.to(gl.int64) * (B * C.WIDTH)
        publish(p + own_word, value.to(gl.float32), stores, io, C)
        asked = ask((p + place,), (p + last,), faults + i_b, patience, C)
        came = ()
        for group in gl.static_range(len(C.waits_first)):
            came = wait_for(came[4 * PARTS :] + asked, C.waits_first, group)
            for i in gl.static_range(PARTS):
                total += part_of(came, 4 * i, group * PARTS + i, k_all, io, C).to(gl.float32)

    flat: gl.constexpr = gl.BlockedLayout([1, 1, 1], [1, 1, 32], [1, C.WARPS_K, 1], [2, 1, 0])
    sums = gl.sum(gl.sum(gl.convert_layout(total, flat), 2), 0).to(gl.int32)
    row = gl.arange(0, C.BLOCK_B, gl.SliceLayout(0, gl.SliceLayout(2, flat)))
    gl.store(gathered + (i_b * gl.num_programs(0) + i_h) * C.BLOCK_B + row, sums)
