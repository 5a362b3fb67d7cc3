"""The assembly of a wait for tagged words: text that is made for the number of groups a lane asks for.

One block of assembly, since a loop of Triton's own would agree on its condition over all warps at every poll, which
costs two block barriers and a broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

# Puts two low or two high halves of words together, PTX `prmt`.
_LOW, _HIGH = "0x5410", "0x7632"
_NAN = "0x7fff7fff"  # in both types of 16 bits


@dataclass(frozen=True)
class Wait:
    """A wait for `groups` groups of 8 words, each with `values` values.

    Operands: for each value four registers of pairs per group; then per group its address, the tag (round << 16), the
    address of the tile's fault, and how often to poll.
    """

    text: str
    constraints: str
    groups: int


def make_wait(groups: int, values: int, wide: bool) -> Wait:
    """Return the wait; `wide`: whether words have 64 bits, and up to three values."""
    words = 8 * groups
    out = 4 * values * groups  # the first input is operand `out`
    tag, fault, polls = f"${out + groups}", f"${out + 2 * groups}", f"${out + 3 * groups}"
    halves = [("a", _LOW), ("a", _HIGH), ("b", _LOW)][:values] if wide else [("b", _LOW)]
    # b has the tag in its upper half.
    lines = ["{", f".reg .b32 b<{words}>, c<{words}>, left, bad, hurt;", ".reg .pred p;"]
    if wide:
        lines += [f".reg .b32 a<{words}>;", f".reg .b64 d<{words}>;"]
    lines += [f"mov.u32 left, {polls};", "$$wait_${:uid}:"]
    for i in range(groups):
        address = f"${out + i}"
        if wide:
            for j in range(0, 8, 2):
                first = 8 * i + j
                lines.append(f"ld.relaxed.gpu.global.v2.b64 {{d{first}, d{first + 1}}}, [{address}+{8 * j}];")
        else:
            for j in range(0, 8, 4):
                four = ", ".join(f"b{8 * i + j + k}" for k in range(4))
                lines.append(f"ld.relaxed.gpu.global.v4.b32 {{{four}}}, [{address}+{4 * j}];")
    if wide:
        lines += [f"mov.b64 {{a{i}, b{i}}}, d{i};" for i in range(words)]
    # Bits that differ from the tag, b ^ tag | bad, count in the upper halves. A chain for each load, since loads come
    # one after another, and then one of all chains.
    chain = 2 if wide else 4
    for first in range(0, words, chain):
        lines.append(f"xor.b32 c{first // chain}, b{first}, {tag};")
        for i in range(first + 1, first + chain):
            lines.append(f"lop3.b32 c{first // chain}, b{i}, {tag}, c{first // chain}, 0xbe;")
    lines.append("mov.u32 bad, c0;")
    chains = words // chain
    for i in range(1, chains - 1, 2):
        lines.append(f"lop3.b32 bad, bad, c{i}, c{i + 1}, 0xfe;")
    if chains % 2 == 0:
        lines.append(f"or.b32 bad, bad, c{chains - 1};")
    lines += [
        "setp.gt.u32 p, bad, 65535;", "vote.sync.any.pred p, p, -1;", "@!p bra $$come_${:uid};",
        # Again, unless patience is over, or that of another warp of the tile is.
        f"ld.relaxed.gpu.global.u32 hurt, [{fault}];", "setp.eq.u32 p, hurt, 0;", "selp.b32 left, left, 1, p;",
        "sub.u32 left, left, 1;", "setp.gt.s32 p, left, 0;", "vote.sync.all.pred p, p, -1;",
        "@p bra $$wait_${:uid};", f"red.relaxed.gpu.global.or.b32 [{fault}], 1;",
    ]  # fmt: skip
    # One value of each row is enough.
    for i in range(groups):
        lines += [f"mov.b32 {half}{8 * i}, {_NAN};" for half in ("a", "b")[1 - wide :]]
    lines.append("$$come_${:uid}:")
    for value, (half, picked) in enumerate(halves):
        for pair in range(4):
            for i in range(groups):
                j = 8 * i + 2 * pair
                target = (4 * value + pair) * groups + i
                lines.append(f"prmt.b32 ${target}, {half}{j}, {half}{j + 1}, {picked};")
    lines.append("}")
    constraints = ["=&r"] * out + ["l"] * groups + ["r"] * groups + ["l"] * groups + ["r"] * groups
    return Wait("\n".join(lines), ",".join(constraints), groups)
