"""The assembly by which programs tell each other values: text that is made for what a lane asks for and hands on.

Memory that will hold values is full of marks before the launch. Who writes a value replaces a mark, and never by a
mark; who wants it asks until there is none. So a value needs no other sign that it is there. A word is 32 bits, two
values of 16 or one of 32: what one store writes and one load asks for, as PTX's memory model wants it.

A wait is one block of assembly, since a loop of Triton's own would agree on its condition over all warps at every poll,
which costs two block barriers and a broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton.experimental.gluon import language as gl

MARK = 0xFFFFFFFF  # a NaN in every type, and not the one that the hardware makes
_NEAREST = 0xFFFFFFFE  # one too, in its place
_LOW_HALVES = "0x5410"  # of two words in one, PTX `prmt`
_NAN = {2: "0x7fff7fff", 4: "0x7fffffff"}


@dataclass(frozen=True)
class Assembly:
    """A block of assembly.

    Attributes:
        text, constraints, types, pack: as `gl.inline_asm_elementwise` takes them; types: of its results.
    """

    text: str
    constraints: str
    types: tuple
    pack: int


@dataclass(frozen=True)
class Rows:
    """What a warp multiplies: pieces of 16 bytes, of `parts` parts, `arrays` arrays and `rows` rows.

    Attributes:
        part_bytes: from a piece to the one of the next part in the same row. has_tail: whether the last part ends where
            rows do, and not where a part does. itemsize: bytes of a value.
        groups: in how many groups of parts it is waited for.
    """

    parts: int
    arrays: int
    rows: int
    part_bytes: int
    has_tail: bool
    itemsize: int
    groups: int

    def of_group(self, group: int) -> list[tuple[int, int]]:
        """Return part and array of the pieces of a group; of none that there is not."""
        size = self.parts // self.groups
        parts = range(group * size, (group + 1) * size) if group < self.groups else ()
        return [(part, array) for part in parts for array in range(self.arrays)]


def make_waits(rows: Rows) -> tuple[Assembly, ...]:
    """Return the wait for each group, which also asks for the next one: what is there is multiplied meanwhile.

    Results: 4 words of each piece of the group, then of the next. Operands: the words of the group as they came, unless
    it is the first, which is asked for in its own wait; for each array the addresses of its pieces of the first part,
    and with a tail of the last; the address of the tile's fault; how often to ask. Each is one register for every row.
    """
    return tuple(_make_wait(rows, group) for group in range(rows.groups))


def _make_wait(rows: Rows, group: int) -> Assembly:
    waited, asked = rows.of_group(group), rows.of_group(group + 1)
    register = {piece: 4 * rows.rows * i for i, piece in enumerate(waited + asked)}
    out = 4 * rows.rows * len(register)
    came = 4 * rows.rows * len(waited) if group else 0
    address = out + came
    last = address + rows.arrays * rows.rows
    fault = last + (rows.arrays * rows.rows if rows.has_tail else 0)

    def words(piece: tuple[int, int], row: int) -> list[str]:
        return [f"${register[piece] + word * rows.rows + row}" for word in range(4)]

    def load(piece: tuple[int, int], row: int) -> str:
        part, array = piece
        place = f"${address + array * rows.rows + row}+{part * rows.part_bytes}"
        if rows.has_tail and part == rows.parts - 1:
            place = f"${last + array * rows.rows + row}"
        return f"ld.relaxed.gpu.global.v4.b32 {{{', '.join(words(piece, row))}}}, [{place}];"

    awaited = [(piece, row) for piece in waited for row in range(rows.rows)]
    first_asked = [(piece, row) for piece in (asked if group else waited + asked) for row in range(rows.rows)]
    lines = ["{", f".reg .b32 c<{len(awaited)}>, marked, left, hurt;", ".reg .pred p;"]
    lines += [f"mov.u32 left, ${fault + rows.rows};", *(load(*one) for one in first_asked), "$$wait_${:uid}:"]
    # A mark is the largest word. A chain for each load, since loads come one after another; then one of all.
    for i, one in enumerate(awaited):
        a, b, c, d = words(*one)
        lines += [f"max.u32 c{i}, {a}, {b};", f"max.u32 c{i}, c{i}, {c};", f"max.u32 c{i}, c{i}, {d};"]
    lines.append("mov.u32 marked, c0;")
    lines += [f"max.u32 marked, marked, c{i};" for i in range(1, len(awaited))]
    lines += [
        f"setp.eq.u32 p, marked, {MARK:#x};", "vote.sync.any.pred p, p, -1;", "@!p bra $$come_${:uid};",
        # Again, unless patience is over, or that of another warp of the tile is.
        f"ld.relaxed.gpu.global.u32 hurt, [${fault}];", "setp.eq.u32 p, hurt, 0;", "selp.b32 left, left, 1, p;",
        "sub.u32 left, left, 1;", "setp.gt.s32 p, left, 0;", "vote.sync.all.pred p, p, -1;",
        "@!p bra $$lost_${:uid};",
    ]  # fmt: skip
    # A piece that was asked for too early is asked for again, and no other.
    for i, one in enumerate(awaited):
        lines += [f"setp.eq.u32 p, c{i}, {MARK:#x};", f"@p {load(*one)}"]
    lines += ["bra $$wait_${:uid};", "$$lost_${:uid}:", f"red.relaxed.gpu.global.or.b32 [${fault}], 1;"]
    # One value of each row is enough.
    lines += [
        f"mov.b32 {words(piece, row)[0]}, {_NAN[rows.itemsize]};" for piece, row in awaited[: rows.arrays * rows.rows]
    ]
    lines += ["$$come_${:uid}:", "}"]
    addresses = fault + rows.rows - address
    constraints = ["=&r"] * out + [str(i) for i in range(came)] + ["l"] * addresses + ["r"] * rows.rows
    return Assembly("\n".join(lines), ",".join(constraints), (gl.int32,) * (out // rows.rows), rows.rows)


def make_publish(itemsize: int, side: int) -> Assembly:
    """Return the store of an element that takes the place of a mark, of two neighbours in one word where they are half.

    Operands: the address, the bits, and whether to store, an integer. Two neighbours are in registers of one lane, or
    with `side` 1 in two lanes beside each other, of which the first stores; its operands are those of the first.

    Args:
        side: elements beside each other that a lane has.
    """
    # In one lane two halves are one operand, and everything else is two.
    pack = 2 if itemsize == 2 and side > 1 else 1
    place, bits = pack, 2 * pack
    stores = bits + 1
    pair = [f"mov.b32 w, ${bits};"]
    if itemsize == 2 and side == 1:
        pair = [f"shfl.sync.bfly.b32 w, ${bits}, 1, 31, -1;", f"prmt.b32 w, ${bits}, w, {_LOW_HALVES};"]
    lines = [
        "{", ".reg .b32 w;", ".reg .pred p;", *pair, f"min.u32 w, w, {_NEAREST:#x};", f"setp.ne.s32 p, ${stores}, 0;",
        f"@p st.relaxed.gpu.global.b32 [${place}], w;", *(f"mov.b32 ${i}, 0;" for i in range(pack)), "}",
    ]  # fmt: skip
    constraints = ["=r"] * pack + ["l"] * pack + ["r"] + ["r"] * pack
    return Assembly("\n".join(lines), ",".join(constraints), (gl.int32,), pack)
