"""How the programs of a batch tile hand each other their part of a step, in the resident kernels.

The memory of the values is full of marks before the launch (`resident_waits.MARK`), and has a place for each step. A
program stores what it has computed, and whoever multiplies it asks for it until no mark is left: one trip through the
second-level cache, and no fence, counter, broadcast or block barrier. Where the values are results, of states or
gradients, they are asked for where they lie, so that nothing is stored for the exchange alone.

A warp asks for all that it multiplies in one block of assembly. It waits for those programs alone whose units it sums
over. Stores and loads are relaxed, in the scope of the GPU: nothing else is ordered by them, and nothing needs to be,
since each word is written once. A line of memory that nobody has touched since the marks were put there may have left
the second-level cache: its owner fetches it, as a hint, some steps ahead.

Every wait is bounded. Who waits longer marks the tile's fault and multiplies a NaN, so that a fault is neither a hang
nor a silent result; the fault then ends the waits of the whole tile.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .resident_product import cube, multiply

FETCHED_AHEAD = gl.constexpr(2)  # steps


@gluon.jit
def places_of(rows, i_b, B, ROW: gl.constexpr, C: gl.constexpr):
    """Return where the pieces of 16 bytes lie that a lane multiplies, in rows of ROW elements: of the first part and of
    the last, (WARPS_K, BLOCK_B, 4). Past the last row and the last unit the last ones are asked for once more.
    """
    a_w = gl.arange(0, C.WARPS_K, gl.SliceLayout(1, gl.SliceLayout(2, C.pieces)))
    a_b = i_b * C.BLOCK_B + gl.arange(0, C.BLOCK_B, gl.SliceLayout(0, gl.SliceLayout(2, C.pieces)))
    a_b = gl.minimum(a_b, B - 1)
    if C.HAS_ROWS:
        a_b = gl.load(rows + a_b).to(gl.int32)
    a_p = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, C.pieces)))
    row = cube(a_w * 0, a_b * ROW, a_p * 0)
    unit = cube(a_w * C.PART, a_b * 0, a_p * C.PIECE)
    return row + unit, row + gl.minimum(unit + (C.NK - 1) * C.WARPS_K * C.PART, C.WIDTH - C.PIECE)


@gluon.jit
def units_of(C: gl.constexpr):
    """Return which unit of the first part each element multiplies, (WARPS_K, BLOCK_B, PART)."""
    return cube(
        gl.arange(0, C.WARPS_K, gl.SliceLayout(1, gl.SliceLayout(2, C.left))) * C.PART,
        gl.arange(0, C.BLOCK_B, gl.SliceLayout(0, gl.SliceLayout(2, C.left))) * 0,
        gl.arange(0, C.PART, gl.SliceLayout(0, gl.SliceLayout(1, C.left))),
    )


@gluon.jit
def stores_of(m_row, o_h, io: gl.constexpr, C: gl.constexpr):
    """Return whether an owned element is published, int32, units of the padding among them; of a word's the first."""
    stores = m_row[:, None] & (o_h < C.WIDTH)[None, :]
    if io.primitive_bitwidth == 16:
        stores = stores & (o_h % 2 == 0)[None, :]
    return stores.to(gl.int32)


@gluon.jit
def publish(p, value, stores, io: gl.constexpr, C: gl.constexpr):
    """Store elements, rounded to `io`, in the place of marks.

    stores: int32, 0 where nothing is stored; of two neighbours in a word the first one's counts.
    """
    rounded = value.to(io)
    if io.primitive_bitwidth == 32:
        bits = rounded.to(gl.int32, bitcast=True)
    elif C.publish.pack == 1:
        bits = rounded.to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
    else:
        bits = rounded.to(gl.int16, bitcast=True)
    gl.inline_asm_elementwise(
        C.publish.text, C.publish.constraints, [p, bits, stores], dtype=gl.int32, is_pure=False, pack=C.publish.pack
    )


@gluon.jit
def publish_all(p, part_size, values, stores, io: gl.constexpr, C: gl.constexpr):
    """Publish several arrays, which lie `part_size` elements apart."""
    for i in gl.static_range(len(values)):
        publish(p + i * part_size, values[i], stores, io, C)


@gluon.jit
def spread(p, part_size, COUNT: gl.constexpr):
    """Return a tuple of pointers to so many arrays, which lie `part_size` elements apart."""
    found = ()
    for i in gl.static_range(COUNT):
        found = found + (p + i * part_size,)
    return found


@gluon.jit
def fetch(p):
    """Have the line that `p` lies in, one for each row, brought to the second-level cache; without a wait."""
    gl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [p], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def multiply_handed(
    places, lasts, weights, sums, fault, patience, k_all, io: gl.constexpr, waits: gl.constexpr, SHARED: gl.constexpr,
    C: gl.constexpr,
):  # fmt: skip
    """Wait for the rows that are handed on, and return `sums` and their products with the weights, one for each.

    places, lasts: tuples of pointers (WARPS_K, BLOCK_B, 4) to the pieces of 16 bytes of the first part and, HAS_TAIL,
    of the last one, see `places_of`; one array for all weights, or one for each. waits: see
    `resident_waits.make_waits`. SHARED: of each weight, whether it lies in shared memory.
    """
    ARRAYS: gl.constexpr = len(places)
    PARTS: gl.constexpr = C.NK // len(waits)  # of a group
    asked = ask(places, lasts, fault, patience, C)
    came = ()
    for group in gl.static_range(len(waits)):
        # Words of this group, and then those of the next as they come.
        came = wait_for(came[4 * ARRAYS * PARTS :] + asked, waits, group)
        for i in gl.static_range(PARTS):
            rows = ()
            for array in gl.static_range(ARRAYS):
                rows = rows + (part_of(came, 4 * (i * ARRAYS + array), group * PARTS + i, k_all, io, C),)
            sums = multiply(rows, weights, group * PARTS + i, sums, SHARED, C)
    return sums


@gluon.jit
def ask(places, lasts, fault, patience, C: gl.constexpr):
    """Return what each wait for these pieces is told, beside the words that came."""
    same = places[0].to(gl.int64) * 0
    asked = places
    if C.HAS_TAIL:
        asked = asked + lasts
    # Two kinds of pointers cannot be told to one block of assembly.
    return asked + (fault.to(gl.int64) + same, same.to(gl.int32) + patience)


@gluon.jit
def wait_for(operands, waits: gl.constexpr, group: gl.constexpr):
    """Return the words of a group that are there, and those of the next one as they come."""
    # Triton 3.6 passes no member of a tuple that is a constant on to another function.
    return gl.inline_asm_elementwise(
        waits[group].text, waits[group].constraints, operands, dtype=waits[group].types, is_pure=False,
        pack=waits[group].pack,
    )  # fmt: skip


@gluon.jit
def part_of(words, j: gl.constexpr, number: gl.constexpr, k_all, io: gl.constexpr, C: gl.constexpr):
    """Return a part (WARPS_K, BLOCK_B, PART), of that number, of the four words from the j-th on of its pieces."""
    four = gl.join(gl.join(words[j], words[j + 1]), gl.join(words[j + 2], words[j + 3]))
    four = gl.permute(four, [0, 1, 2, 4, 3])
    if io.primitive_bitwidth == 32:
        values = four.to(io, bitcast=True)
    else:
        low = (four & 0xFFFF).to(gl.int16).to(io, bitcast=True)
        high = (four >> 16).to(gl.int16).to(io, bitcast=True)
        values = gl.join(low, high)
    part = gl.convert_layout(gl.reshape(values, [C.WARPS_K, C.BLOCK_B, C.PART]), C.left)
    if C.HAS_TAIL and number == C.NK - 1:
        part = gl.where(k_all + number * C.WARPS_K * C.PART < C.U, part, 0.0)
    return part
