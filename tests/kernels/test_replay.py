"""The replay of machine code, on small programs written by hand in the assembler's own format."""

from dataclasses import fields, replace

import pytest

from tritongru.tools.replay import sass, timeline
from tritongru.tools.replay.latencies import HOPPER, SOURCES, Latencies

NONE = 7


def line(text, stall=1, writes=NONE, reads=NONE, waits=0):
    """Return an instruction as `nvdisasm -c -hex` prints it; only the control codes of its encoding are right."""
    control = stall | writes << 5 | reads << 8 | waits << 11
    return (
        f"        /*0010*/                   {text} ;                       /* 0x0000000000000000 */\n"
        f"                                                                  /* 0x{control << 41:016x} */"
    )


def program(*lines):
    return "\n".join(lines)


def step_of(*lines):
    """Return the step of a loop with these lines."""
    return sass.one_step(*sass.parse(program(".L_x_1:", *lines, line("@P0 BRA `(.L_x_1)", stall=5))))


HMMA = "HMMA.16816.F32.BF16 R4, R8, R12, R4"


def cycles(step, warps=1, **changes):
    return timeline.replay(step, warps, replace(HOPPER, **changes)).cycles


def test_control_codes_are_read():
    code, labels = sass.parse(program(".L_x_3:", line("@!P1 LDG.E.128 R4, desc[UR4][R2.64]", 4, 2, 1, 0b1001)))
    assert labels == {".L_x_3": 0}
    (x,) = code
    assert (x.guard, x.opcode, x.stall, x.writes, x.reads, x.waits) == ("@!P1", "LDG.E.128", 4, 2, 1, 9)
    assert x.size == 16 and not x.strong and not x.publishes


def test_an_encoding_that_is_cut_off_is_an_error():
    with pytest.raises(ValueError, match="second half"):
        sass.parse(line("NOP").splitlines()[0])


def test_a_step_is_the_largest_loop_with_products():
    text = program(
        ".L_x_1:", line("LDG.E R1, desc[UR4][R2.64]"), line("@P0 BRA `(.L_x_1)"),
        ".L_x_2:", line(HMMA), line("FADD R1, R2, R3"), line("@P0 BRA `(.L_x_2)"), line("EXIT"),
    )  # fmt: skip
    assert [x.opcode for x in sass.one_step(*sass.parse(text))] == ["HMMA.16816.F32.BF16", "FADD", "BRA"]
    with pytest.raises(ValueError, match="no loop"):
        sass.one_step(*sass.parse(line(HMMA)))


def test_waits_are_left_at_once():
    """The loop of a second poll is jumped over; a jump over plain code is not taken."""
    step = step_of(
        line(HMMA), line("LDG.E.STRONG.GPU R1, desc[UR4][R2.64]"), line("@!P1 BRA `(.L_x_3)"),
        ".L_x_2:", line("LDG.E.STRONG.GPU R1, desc[UR4][R2.64]"), line("@P1 BRA `(.L_x_2)"),
        ".L_x_3:", line("@P2 BRA `(.L_x_4)"), line("STS [R1], R4"), ".L_x_4:", line("FADD R1, R2, R3"),
    )  # fmt: skip
    names = [x.opcode.partition(".")[0] for x in step]
    assert names == ["HMMA", "LDG", "BRA", "BRA", "STS", "FADD", "BRA"]


def test_what_follows_patience_is_no_part_of_a_step():
    step = step_of(
        ".L_x_2:", line("LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64]"), line("@!P1 BRA `(.L_x_3)"),
        line("@P1 BRA `(.L_x_2)"), line("REDG.E.OR.STRONG.GPU desc[UR4][R2.64], R5"), ".L_x_3:", line(HMMA),
    )  # fmt: skip
    assert [x.opcode.partition(".")[0] for x in step] == ["LDG", "BRA", "HMMA", "BRA"]


def test_counts_spills_and_repetition():
    step = step_of(line(HMMA), line(HMMA), line("LDL R1, [R2]"), line("STL [R2], R1"), line("LDSM.16.M88.4 R4, [R2]"))
    found = sass.count(step)
    assert (found["HMMA"], found["LDL"], found["LDSM"], found["LDS"], found["instructions"]) == (2, 1, 1, 0, 6)
    assert sass.spills_in(step) == 2
    # Two products of 16x8x16 by each of 4 warps, for 16 rows of 16 units summed over 16 units, and one gate.
    assert sass.repetition(step, warps=4, rows=16, units=16, summed=16, gates=1) == 4


def test_stalls_and_the_quarters_of_a_multiprocessor():
    chain = [line("FADD R1, R1, R2", stall=4)] * 5
    alone = cycles(step_of(line(HMMA, stall=1), *chain))
    assert alone == 1 + 5 * 4 + 5
    # Warps 0 and 4 share a quarter; its issue slots are enough for two chains that wait.
    assert alone <= cycles(step_of(line(HMMA, stall=1), *chain), warps=8) <= alone + 8
    products = step_of(*[line(HMMA, stall=1)] * 10)
    assert cycles(products, product_every=7) - cycles(products, product_every=6) == 10
    together = step_of(*[line(HMMA, stall=1)] * 10, line("BAR.SYNC.DEFER_BLOCKING 0x0"))
    assert cycles(together, warps=5) >= 2 * 10 * 6  # two warps in one quarter


def test_a_scoreboard_waits_for_memory():
    def step(waits):
        return step_of(
            line("LDG.E R4, desc[UR4][R2.64]", writes=0), line(HMMA), line("FADD R1, R4, R2", waits=waits, stall=4)
        )

    assert cycles(step(1), cache=273) - cycles(step(1), cache=173) == 100
    assert cycles(step(0), cache=273) == cycles(step(0), cache=173)


def test_a_barrier_waits_for_the_slowest_warp():
    step = step_of(line(HMMA), line("BAR.SYNC.DEFER_BLOCKING 0x0"))
    assert cycles(step, warps=4, barrier=50) - cycles(step, warps=4, barrier=20) == 30
    assert cycles(step, warps=8) > cycles(step, warps=4)  # products of two warps of each quarter come first


def exchange(*between):
    """A step that asks for a word of the step before, multiplies, and publishes its own."""
    return step_of(
        line("LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64]", writes=0),
        line(HMMA, waits=1),
        *between,
        line("@P0 STG.E.STRONG.GPU desc[UR4][R2.64], R4"),
    )


def test_a_strong_load_gets_its_value_after_the_last_publication():
    own = cycles(exchange(), cache=100, cache_rate=float("inf"))
    assert 100 < own < 130
    assert cycles(exchange(), cache=200, cache_rate=float("inf")) - own == 100
    # The slowest warp's word is waited for, by all.
    more = exchange(*[line("FADD R1, R1, R2", stall=10)] * 10)
    assert cycles(more, cache=100, cache_rate=float("inf")) - own == pytest.approx(100, abs=5)


def test_a_fence_and_a_counter_by_one_lane():
    step = step_of(
        line("LDG.E.STRONG.GPU R4, desc[UR4][R2.64]", writes=0),
        line(HMMA, waits=1),
        line("@!P0 MEMBAR.ALL.GPU"),
        line("@!P0 REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R4"),
    )
    assert [x.leader for x in step] == [False, False, True, True, False]
    assert cycles(step, warps=4, fence=600) - cycles(step, warps=4, fence=500) == 100


def test_bytes_of_the_second_level_cache_take_time():
    loads = [line("LDG.E.128 R4, desc[UR4][R2.64]", writes=0)] * 8
    step = step_of(*loads, line(HMMA, waits=1))
    replay = timeline.replay(step, 4)
    assert replay.cache_bytes == 4 * 8 * 32 * 16
    assert replay.cycles - cycles(step, warps=4, cache_rate=128) == pytest.approx(replay.cache_bytes / 128, rel=0.1)
    words = timeline.replay(exchange(), 4)
    assert words.cache_bytes == 4 * 32 * (16 + 4)


COPY = [line("LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]"), line("LDGDEPBAR", writes=0)]


def test_copies_to_shared_memory_are_waited_for_in_groups():
    def step(left):
        return step_of(*COPY, *COPY, line(f"DEPBAR.LE SB0, 0x{left}"), line(HMMA))

    unbound = dict(cache_rate=float("inf"))
    assert cycles(step(0), cache=373, **unbound) - cycles(step(0), cache=273, **unbound) == 100
    # Each group is behind the bytes of those before it: one left under way is one less to wait for.
    assert cycles(step(0), cache_rate=1) - cycles(step(1), cache_rate=1) > 200
    assert timeline.replay(step(0), 4).cache_bytes == 4 * 2 * 32 * 16
    assert sass.count(step(0))["LDG"] == 0


def test_a_loop_of_chunks_is_repeated():
    text = program(
        ".L_x_1:", line("FADD R1, R1, R2", stall=3), ".L_x_2:", line(HMMA, stall=7), line("@P0 BRA `(.L_x_2)", stall=5),
        line("FADD R1, R1, R2", stall=3), line("@P1 BRA `(.L_x_1)", stall=5),
    )  # fmt: skip
    once, often = (sass.one_step(*sass.parse(text), chunks) for chunks in (1, 5))
    assert len(often) - len(once) == 4 * 2
    assert cycles(often) - cycles(once) == 4 * 12


def test_many_chunks_take_as_long_as_the_last_of_few(monkeypatch):
    text = program(
        ".L_x_1:", line("FADD R1, R1, R2", stall=3), ".L_x_2:", *COPY, line(HMMA, stall=7),
        line("@P0 BRA `(.L_x_2)", stall=5), line("@P1 BRA `(.L_x_1)", stall=5),
    )  # fmt: skip
    monkeypatch.setattr(sass, "disassemble", lambda cubin: text)
    few, many = (timeline.replay_cubin(b"", 1, chunks=chunks)[1] for chunks in (8, 100))
    whole = timeline.replay(sass.one_step(*sass.parse(text), 100), 1)
    assert many.cache_bytes == whole.cache_bytes and few.cache_bytes * 100 == 8 * whole.cache_bytes
    assert many.cycles == pytest.approx(whole.cycles, rel=0.01)


def test_products_of_float32_and_those_that_run_beside_the_warps():
    text = program(".L_x_1:", line("FFMA R1, R2, R3, R1", stall=4), line("@P0 BRA `(.L_x_1)", stall=5))
    assert [x.opcode for x in sass.one_step(*sass.parse(text))] == ["FFMA", "BRA"]
    with pytest.raises(ValueError, match="asynchronous"):
        sass.one_step(*sass.parse(program(text, line("HGMMA.64x32x16.F32.BF16 R4, gdesc[UR8], R4"))))


def test_a_wait_for_nobody_is_an_error():
    """A load of another step's word in a loop whose only publication comes from a place that is never reached."""
    step = exchange()
    step[2] = replace(step[2], guard="", opcode="STG.E.STRONG.GPU", leader=True)
    timeline.replay(step, 2)  # the leading warp publishes
    machine = timeline._Machine(step, 2, HOPPER, 2)
    machine.per_pass = [2, 0]
    with pytest.raises(ValueError, match="nobody publishes"):
        machine.run()


def test_every_number_has_a_source():
    assert SOURCES.keys() == {field.name for field in fields(Latencies)}
