"""The emulated GPU itself: instructions against what PTX says of them, and each fault it looks for, in small kernels.

The kernels of this package, run on it, are in test_emulated.py.
"""

import re
import struct

import numpy as np
import pytest
import torch

from emulator.machine import Code, Grid, SynchronisationError
from emulator.memory import AccessError
from emulator.ptx import UnsupportedInstruction, parse
from emulator.races import RaceError

HEADER = """.visible .entry kernel(.param .u64 .ptr .global .align 1 kernel_param_0) .reqntid {threads}
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	ld.param.b64 %rd1, [kernel_param_0];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd2, %rd1, %rd2;
	mov.b32 %r3, global_smem;
	shl.b32 %r4, %r1, 2;
	add.s32 %r4, %r3, %r4;
"""


def run(body, data=None, warps=1, programs=1, seed=0, limit=10_000):
    """Run `body`; %rd1 is the address of the data, %rd2 and %r4 those of a thread's word there and in shared memory."""
    data = torch.zeros(32 * warps, dtype=torch.int32) if data is None else data
    code = Code(parse(HEADER.format(threads=32 * warps) + body + "\n\tret;\n}\n"))
    grid = Grid(code, (programs, 1, 1), 1024, True, seed, {"data": data})
    grid.parameters = {"kernel_param_0": grid.memory.addresses["data"]}
    grid.run(limit)
    return data


def bits(value):
    return struct.unpack("<i", struct.pack("<f", value))[0]


def lanes(function):
    """Return what each of 32 lanes should hold, as signed 32-bit numbers."""
    return [(function(lane) + 2**31) % 2**32 - 2**31 for lane in range(32)]


@pytest.mark.parametrize(
    "instructions, expected",
    [
        ("add.s32 %r8, %r1, -5;", lambda i: i - 5),
        ("mul.lo.s32 %r8, %r1, 0x10000001;", lambda i: i * 0x10000001),
        ("mul.hi.u32 %r8, %r1, 0x80000000;", lambda i: i // 2),
        ("sub.s32 %r7, 3, %r1; mul.hi.s32 %r8, %r7, 0x40000000;", lambda i: (3 - i) >> 2),
        ("mad.lo.s32 %r8, %r1, 3, 7;", lambda i: 3 * i + 7),
        ("mul.wide.s32 %rd8, %r1, -2; cvt.u32.u64 %r8, %rd8;", lambda i: -2 * i),
        ("shl.b32 %r8, 1, %r1; shl.b32 %r8, %r8, 1;", lambda i: 1 << i + 1 if i < 31 else 0),
        ("mov.b32 %r7, 32; shl.b32 %r8, %r1, %r7;", lambda i: 0),
        ("sub.s32 %r7, 3, %r1; shr.s32 %r8, %r7, 40;", lambda i: -1 if i > 3 else 0),
        ("bfe.u32 %r8, %r1, 1, 3;", lambda i: i >> 1 & 7),
        ("bfe.s32 %r8, %r1, 2, 1;", lambda i: -(i >> 2 & 1)),
        ("prmt.b32 %r8, %r1, 0x80, 0x4C00U;", lambda i: i | i << 8 | 0xFF << 16 | 0x80 << 24),
        ("shf.l.wrap.b32 %r8, 0x80000000, %r1, 1;", lambda i: i << 1 | 1),
        ("sub.s32 %r7, %r1, 8; rem.s32 %r8, %r7, 3;", lambda i: abs(i - 8) % 3 * (1 if i >= 8 else -1)),
        ("sub.s32 %r7, %r1, 8; div.s32 %r8, %r7, 3;", lambda i: abs(i - 8) // 3 * (1 if i >= 8 else -1)),
        ("setp.lt.s32 %p1, %r1, 5; selp.b32 %r8, 7, %r1, %p1;", lambda i: 7 if i < 5 else i),
        ("mov.b32 %r8, 9; setp.gt.u32 %p1, %r1, 5; @%p1 mov.b32 %r8, 4;", lambda i: 4 if i > 5 else 9),
        ("cvt.u16.u32 %rs1, %r1; mov.b32 %r8, {%rs1, 5};", lambda i: i | 5 << 16),
        ("mov.b32 {%rs1, %rs2}, 0x70006; mov.b32 %r8, {%rs2, %rs1};", lambda i: 0x60007),
        ("cvt.rn.f32.s32 %r7, %r1; fma.rn.f32 %r8, %r7, 0f40000000, 0f3F800000;", lambda i: bits(2.0 * i + 1)),
        ("cvt.rn.f32.s32 %r7, %r1; cvt.rn.bf16.f32 %rs1, %r7; cvt.u32.u16 %r8, %rs1;", lambda i: bits(i) >> 16),
        ("cvt.rn.f16x2.f32 %r8, 0f3F800000, 0fBF800000;", lambda i: 0x3C00BC00),
        ("mul.bf16x2 %r8, 0x40003F80, 0x40404040;", lambda i: 0x40C04040),
        ("mov.b64 %rd3, {%r1, 0f40000000}; add.f32x2 %rd8, %rd3, %rd3; mov.b64 {_, %r8}, %rd8;", lambda i: bits(4.0)),
        ("mov.b16 %rs1, 0x4040; add.rn.f32.bf16 %r8, %rs1, 0f3F800000;", lambda i: bits(4.0)),
        ("setp.gt.f16x2 %p1|%p2, 0x3C00BC00, 0; selp.b32 %r7, 1, 0, %p1; selp.b32 %r8, 2, %r7, %p2;", lambda i: 2),
        ("setp.ne.f32 %p1, 0f7FC00000, 0f0; selp.b32 %r8, 1, 0, %p1;", lambda i: 0),
        ("setp.neu.f32 %p1, 0f7FC00000, 0f0; selp.b32 %r8, 1, 0, %p1;", lambda i: 1),
        ("mul.ftz.f32 %r8, 0f00000001, 0f3F800000;", lambda i: 0),
        ("rsqrt.approx.ftz.f32 %r8, 0f40800000;", lambda i: bits(0.5)),
        ("cvt.rna.tf32.f32 %r8, 0f3F801000;", lambda i: 0x3F802000),
        ("shfl.sync.bfly.b32 %r8, %r1, 5, 31, -1;", lambda i: i ^ 5),
        ("xor.b32 %r7, %r1, 31; shfl.sync.idx.b32 %r8, %r1, %r7, 31, -1;", lambda i: 31 - i),
        ("mov.b32 %r7, -1; redux.sync.max.s32 %r8, %r1, %r7;", lambda i: 31),
        ("st.shared.b32 [%r4], %r1; bar.warp.sync -1; ld.shared.b32 %r8, [global_smem+12];", lambda i: 3),
        (
            "add.s32 %r7, %r1, 0x50000; st.shared::cta.b16 [%r4], %r7; ld.shared::cta.u16 %rs1, [%r4];"
            "cvt.u32.u16 %r8, %rs1;",
            lambda i: i,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_instruction(instructions, expected):
    assert run(instructions + " st.global.b32 [%rd2], %r8;").tolist() == lanes(expected)


def test_a_loop_and_an_atomic():
    """Three programs of two warps add 1 to each thread's word, five times."""
    body = "mov.b32 %r7, 0;\n$L_1:\n red.global.gpu.relaxed.add.u32 [%rd2], 1; add.s32 %r7, %r7, 1;"
    body += "setp.lt.s32 %p1, %r7, 5; @%p1 bra $L_1;"
    assert run(body, warps=2, programs=3).tolist() == [15] * 64


def test_a_matrix_product_of_loaded_matrices():
    """D = A B with A (16,16) and B (16,8) in float16, through cp.async, ldmatrix and mma, as a tile of a scan."""
    generator = np.random.default_rng(0)
    a, b = generator.integers(-4, 5, (16, 16)).astype(np.float16), generator.integers(-4, 5, (16, 8)).astype(np.float16)
    words = np.concatenate([a.ravel(), b.ravel()]).view(np.int32)
    data = torch.from_numpy(np.concatenate([words, np.zeros(128, np.int32)]))
    body = """
	shl.b32 %r5, %r1, 4;
	mul.wide.u32 %rd3, %r5, 1;
	add.s64 %rd3, %rd1, %rd3;
	add.s32 %r5, %r3, %r5;
	cp.async.cg.shared.global [%r5], [%rd3], 0x10;
	cp.async.ca.shared.global [%r5+512], [%rd3+512], 0x10, %r6;
	cp.async.commit_group;
	cp.async.wait_group 0;
	bar.sync 0;
"""
    # Lanes 0 to 15 copy B, the others ask for zero bytes. ldmatrix takes rows of A at 32 bytes each, half by half.
    body = "setp.lt.u32 %p1, %r1, 16; selp.b32 %r6, 16, 0, %p1;\n" + body
    body += """
	and.b32 %r5, %r1, 15;
	shl.b32 %r5, %r5, 5;
	and.b32 %r6, %r1, 16;
	add.s32 %r5, %r5, %r6;
	add.s32 %r5, %r3, %r5;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r5];
	and.b32 %r1, %r1, 15;
	shl.b32 %r1, %r1, 4;
	add.s32 %r1, %r3, %r1;
	ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r1, %r2}, [%r1+512];
	mov.b32 %r3, 0;
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
		{%r5,%r6,%r7,%r8}, {%r5,%r6,%r7,%r8}, {%r1,%r2}, {%r3,%r3,%r3,%r3};
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 8;
	add.s64 %rd3, %rd1, %rd3;
	st.global.v2.b32 [%rd3+768], {%r5, %r6};
	st.global.v2.b32 [%rd3+1024], {%r7, %r8};
"""
    found = run(body.replace("\n\t\t", " "), data).numpy()[192:].view(np.float32).reshape(16, 8)
    np.testing.assert_array_equal(found, a.astype(np.float32) @ b.astype(np.float32))


FAULTS = {
    "a word past the end": ("ld.global.b32 %r8, [%rd2+4];", AccessError, "which has 256"),
    "a wild address": ("ld.global.b32 %r8, [%rd7];", AccessError, "in no buffer"),
    "not aligned": ("ld.global.v2.b32 {%r7, %r8}, [%rd2];", AccessError, "aligned"),
    "a part of a word": ("st.global.b16 [%rd2], %rs1;", AccessError, "tears"),
    "unwritten shared memory": ("ld.shared.b32 %r8, [%r4];", AccessError, "never written"),
    "two values at one address": ("st.shared.b32 [global_smem], %r1;", AccessError, "different values"),
    "a copy nobody waited for": (
        "cp.async.ca.shared.global [%r4], [%rd2], 4; cp.async.commit_group; bar.sync 0; ld.shared.b32 %r8, [%r4];",
        AccessError,
        "waited for",
    ),
    "lanes that part": ("setp.lt.u32 %p1, %r1, 5; @%p1 bra $L_1; $L_1:", UnsupportedInstruction, "part"),
    "a barrier that some warps pass by": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $L_1; bar.sync 0; $L_1:",
        SynchronisationError,
        "have ended",
    ),
    "two different barriers": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $L_1; bar.sync 0; bra.uni $L_2; $L_1: bar.sync 0; $L_2:",
        SynchronisationError,
        "meet at barriers",
    ),
    "an endless loop": ("$L_1: bra.uni $L_1;", SynchronisationError, "not ended"),
    "an unknown instruction": ("popc.b32 %r8, %r1;", UnsupportedInstruction, "popc"),
    "an unknown qualifier": ("add.sat.s32 %r8, %r1, 1;", UnsupportedInstruction, "sat"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault(fault):
    body, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        run(re.sub(r"(\$L_\d:)", r"\n\1\n", body), warps=2)


def test_a_view_ends_where_its_last_element_does():
    whole = torch.zeros(128).int()
    run("st.global.b32 [%rd2], %r1;", whole[32:64])
    assert whole.tolist() == [0] * 32 + list(range(32)) + [0] * 64
    for body in ("ld.global.b32 %r8, [%rd2+4];", "sub.s64 %rd2, %rd2, 4; ld.global.b32 %r8, [%rd2];"):
        with pytest.raises(AccessError, match="which has 128"):
            run(body, whole[32:64])


def test_uninitialised_global_memory():
    data = torch.empty(32, dtype=torch.int32)  # filled, as every test's memory
    assert run("st.global.b32 [%rd2], %r1; ld.global.b32 %r8, [%rd2];", data.clone()).tolist() == list(range(32))
    with pytest.raises(AccessError, match="never written"):
        run("ld.global.b32 %r8, [%rd2];", data)


# Who reads what another has written: a lane, a warp, a program. Thread 0 of each program stands for it where one acts.
WRITE = "xor.b32 %r5, %r4, {other}; st.shared.b32 [%r4], %r1; {between} ld.shared.b32 %r8, [%r5];"
MESSAGE = """
	setp.eq.b32 %p1, %r1, 0;
	setp.eq.b32 %p2, %r2, 0;
	and.pred %p3, %p1, %p2;
	@!%p2 bra $L_2;
	st.global.b32 [%rd2], %r1;
	{before}
	@%p3 {release};
	bra.uni $L_3;
$L_2:
	@%p1 {acquire};
	@%p1 st.shared.b32 [%r4], %r8;
	bar.sync 0;
	ld.shared.b32 %r8, [global_smem];
	bar.sync 0;
	setp.eq.b32 %p4, %r8, 0;
	@%p4 bra $L_2;
	ld.global.b32 %r7, [%rd1+128];
$L_3:
"""
RELEASE = "red.global.gpu.release.add.u32 [%rd1+256], 1"
ACQUIRE = "ld.global.gpu.acquire.b32 %r8, [%rd1+256]"


@pytest.mark.parametrize(
    "other, between, ordered",
    [
        (0, "", True), (4, "", False), (4, "bar.warp.sync -1;", True), (4, "bar.sync 0;", True),
        (128, "", False), (128, "bar.warp.sync -1;", False), (128, "bar.sync 0;", True),
    ],
)  # fmt: skip
def test_races_within_a_program(other, between, ordered):
    body = WRITE.format(other=other, between=between)
    for seed in range(4):
        if ordered:
            run(body, warps=2, seed=seed)
        else:
            with pytest.raises((RaceError, AccessError), match="nothing orders|never written"):
                run(body, warps=2, seed=seed)


@pytest.mark.parametrize(
    "changes, ordered",
    [
        ({}, True),
        ({"before": ""}, False),
        ({"release": RELEASE.replace("release", "relaxed")}, False),
        ({"acquire": ACQUIRE.replace("acquire", "relaxed")}, False),
        ({"acquire": "atom.global.gpu.acquire.add.u32 %r8, [%rd1+256], 0"}, True),
        ({"release": "st.global.gpu.release.b32 [%rd1+256], 1"}, True),
        ({"release": "atom.global.gpu.acq_rel.exch.b32 %r6, [%rd1+256], 1"}, True),
    ],
    ids=str,
)
def test_races_between_programs(changes, ordered):
    """Program 0 writes words 0 to 63, its warp 0 releases word 64; program 1 acquires and reads what warp 1 wrote."""
    body = MESSAGE.format(**({"before": "bar.sync 0;", "release": RELEASE, "acquire": ACQUIRE} | changes))
    for seed in range(4):
        if ordered:
            assert run(body, torch.zeros(65).int(), 2, 2, seed)[:64].tolist() == list(range(64))
        else:
            with pytest.raises(RaceError, match="of data .*nothing orders"):
                run(body, torch.zeros(65).int(), 2, 2, seed)


@pytest.mark.parametrize("store", ["st", "st.relaxed.gpu"])
@pytest.mark.parametrize("load", ["ld", "ld.volatile", "ld.relaxed.gpu"])
def test_words_that_are_read_while_they_are_written(store, load):
    """Both sides must be strong: a weak store is no message, however it is read."""
    body = f"""
	setp.eq.b32 %p1, %r2, 0;
	@%p1 {store}.global.b32 [%rd2], 1;
	@!%p1 {load}.global.b32 %r8, [%rd2];
"""
    if store == "st" or load == "ld":
        with pytest.raises(RaceError):
            run(body, programs=2)
    else:
        run(body, programs=2)
