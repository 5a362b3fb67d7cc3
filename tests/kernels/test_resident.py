"""The kernels with weights in registers, compiled and run instruction by instruction on an emulated GPU.

Gluon has no interpreter, so the machine of tests/emulator proves what the interpreter proves for the other kernels.
Mistakes are then put into the compiled code, and the machine must name them. `make emulate` draws many more calls.
"""

import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.ampere")
from triton import knobs  # noqa: E402

from tritongru.backends.triton import resident, tilings  # noqa: E402
from tritongru.backends.triton.tilings import Tiling  # noqa: E402
from tritongru.call.errors import ExchangeError  # noqa: E402
from tritongru.call.problem import Variant  # noqa: E402
from tritongru.environment import is_interpreted  # noqa: E402
from tritongru.tools.oracle.cases import Case  # noqa: E402

if is_interpreted() or not hasattr(knobs.runtime, "add_stages_inspection_hook"):
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from emulator.driver import DEVICES, emulated_gpu  # noqa: E402
from emulator.machine import SynchronisationError  # noqa: E402
from emulator.memory import AccessError  # noqa: E402
from emulator.races import RaceError  # noqa: E402
from emulator.residents import ResidentScan, check_resident, run_resident  # noqa: E402

ALONE = Tiling(16, 32, 1, 4, "none")
COUNTED = Tiling(16, 16, 2, 1, "counter")
TAGGED = Tiling(16, 16, 2, 1, "tagged")
BF16 = dict(dtype="bfloat16", input_size=3)
FP16 = dict(dtype="float16", input_size=3)
TF32 = dict(dtype="float32", input_size=3, precision="tf32")
EVERYTHING = dict(mask=True, resets=True, reset_state="rows", recurrent_dropouts=3)
TURNED = dict(reset_after=False, layout="torch", go_backwards=True, resets=True, reset_state="steps")
SHORT = dict(recurrent_dropouts=1, lengths=True, zero_output_for_mask=True)

SCANS = [
    ResidentScan(Case(18, 4, units=32, **BF16, **EVERYTHING), ALONE),
    ResidentScan(Case(18, 4, units=32, **BF16, **EVERYTHING), COUNTED),
    ResidentScan(Case(18, 3, units=64, **BF16, **EVERYTHING), TAGGED),
    ResidentScan(Case(3, 3, units=32, **FP16, **TURNED), ALONE, approximate=True),
    ResidentScan(Case(3, 3, units=32, **FP16, **TURNED), COUNTED),
    ResidentScan(Case(3, 3, units=32, **FP16, **TURNED), TAGGED, capability=80),
    ResidentScan(Case(3, 3, units=20, **BF16, **SHORT), ALONE),
    ResidentScan(Case(3, 3, units=20, **TF32, **SHORT), COUNTED),
    ResidentScan(Case(3, 3, units=41, **BF16, **SHORT), TAGGED, capability=100),
    ResidentScan(Case(18, 2, units=25, reset_after=False, recurrent_dropouts=3, mask=True, **FP16), TAGGED),
    ResidentScan(Case(3, 3, units=20, use_bias=False, initial_state=False, recompute=True, **TF32), ALONE),
    ResidentScan(Case(40, 2, units=32, **BF16), replace(COUNTED, block_b=32), replace(COUNTED, block_b=64)),
    ResidentScan(Case(40, 2, units=32, **BF16), replace(TAGGED, block_b=64), replace(TAGGED, block_b=32)),
    ResidentScan(Case(3, 2, units=64, **BF16), replace(COUNTED, shared_gates=1), replace(COUNTED, shared_gates=3)),
    ResidentScan(Case(3, 2, units=64, **FP16), Tiling(16, 32, 2, 2, "tagged", 2), Tiling(16, 32, 2, 2, "counter")),
    # More tiles than fit at once go in waves, and rows of one tile end together.
    ResidentScan(Case(35, 3, units=32, lengths=True, recurrent_dropouts=3, **BF16), TAGGED, processors=5),
    ResidentScan(Case(35, 3, units=32, lengths=True, reset_after=False, **BF16), COUNTED, processors=5),
    ResidentScan(Case(3, 2, units=1, **BF16), Tiling(16, 16, 1, 2, "none")),
    ResidentScan(Case(1, 1, units=9, **FP16), Tiling(16, 16, 1, 1, "tagged")),
    *(
        ResidentScan(Case(2, 2, units=16, activation=f, recurrent_activation=g, **TF32), Tiling(16, 16, 1, 2, "none"))
        for f, g in [("relu", "hard_sigmoid"), ("elu", "softsign"), ("selu", "leaky_relu"), ("softplus", "linear")]
    ),
    ResidentScan(Case(2, 2, units=16, activation="exponential", **BF16), Tiling(16, 16, 1, 2, "none")),
]


@pytest.mark.parametrize("scan", SCANS, ids=str)
def test_both_directions(scan):
    check_resident(scan)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_hardwares_tanh_is_within_the_tolerance(dtype):
    check_resident(ResidentScan(Case(18, 12, 3, 32, dtype), ALONE, approximate=True))


@pytest.mark.parametrize("tiling", [ALONE, COUNTED, TAGGED], ids=lambda tiling: tiling.exchange)
def test_the_order_of_warps_and_the_place_of_a_row_change_no_bit(tiling):
    case = Case(18, 3, units=32, **BF16)
    first, _ = run_resident(ResidentScan(case, tiling))
    again, _ = run_resident(ResidentScan(case, tiling, seed=1))
    assert all(torch.equal(again[name], value) for name, value in first.items())

    g = torch.Generator().manual_seed(0)
    gx, h0 = torch.randn(3, 18, 96, generator=g).bfloat16(), torch.randn(18, 32, generator=g).bfloat16()
    u, order = torch.randn(32, 96, generator=g).bfloat16() / 6, torch.randperm(18, generator=g)

    def both(rows):
        with emulated_gpu():
            out, last, entering, gates = resident.run_forward(
                gx[:, rows], u, None, h0[rows], None, None, None, None, Variant(), True, tiling=tiling
            )
            before = torch.cat((h0[rows][None], out[:-1]))
            back = resident.run_backward(out, last, gates, before, u, None, None, None, Variant(), False, tiling=tiling)
        return out, gates[0], *back[:2], back[2][None]

    for plain, moved in zip(both(torch.arange(18)), both(order), strict=True):
        assert torch.equal(plain[:, order], moved)


@pytest.mark.parametrize("tiling", [ALONE, COUNTED, TAGGED], ids=lambda tiling: tiling.exchange)
def test_members_of_a_launch_are_scans_of_their_own(tiling):
    """Two members, one of them reversed, give the bits of two launches."""
    g = torch.Generator().manual_seed(1)
    T, B, U, M = 3, 18, 32, 2
    gx, h0 = torch.randn(M, T, B, 3 * U, generator=g).bfloat16(), torch.randn(M, B, U, generator=g).bfloat16()
    u, bias = torch.randn(M, U, 3 * U, generator=g).bfloat16() / 6, torch.randn(M, U, generator=g).bfloat16()
    drop = (torch.rand(M, 3, B, U, generator=g) < 0.8).bfloat16()
    mask = torch.rand(T, B, generator=g) < 0.7
    # Resets of each member's own, as two directions have them; the mask of all.
    resets, fresh = torch.rand(M, T, B, generator=g) < 0.3, torch.randn(M, B, U, generator=g).bfloat16()
    d_out, d_last = torch.randn(M, T, B, U, generator=g).bfloat16(), torch.randn(M, B, U, generator=g).bfloat16()
    reverse = [False, True]
    with emulated_gpu():
        found = resident.run_members_forward(
            gx, u, bias, h0, mask, resets, fresh, drop, Variant(), reverse, True, tiling=tiling
        )
        back = resident.run_members_backward(
            d_out, d_last, found[3], found[2], u, mask, resets, drop, Variant(), reverse, True, tiling=tiling
        )
        for m, variant in enumerate([Variant(), Variant(reverse=True)]):
            alone = resident.run_forward(
                gx[m], u[m], bias[m], h0[m], mask, resets[m], fresh[m], drop[m], variant, True, tiling=tiling
            )
            # Rows end early in a launch of their own: what is masked to the end has no gates.
            for name, together, single in zip(("out", "last", "entering"), found, alone, strict=False):
                assert torch.equal(together[m], single), name
            alone_back = resident.run_backward(
                d_out[m], d_last[m], alone[3], alone[2], u[m], mask, resets[m], drop[m], variant, True, tiling=tiling
            )
            for name, together, single in zip(("d_gx", "d_gh_n", "d_h0", "d_fresh"), back, alone_back, strict=True):
                assert torch.equal(together[m], single), name


# Mistakes in compiled code.

SMALL = Case(3, 3, units=32, **BF16)
FAULTS = (RaceError, AccessError, SynchronisationError)
BARRIER = r"^\s*bar\.sync\s+0;$(?:\n\s*(?:(?:\.loc|//).*|bar\.sync\s+0;)?$)*"


def texts_of(scan):
    """Return the right results, and the PTX of both kernels."""
    texts = []
    right, _ = run_resident(scan, lambda text: texts.append(text) or text)
    return right, texts


def is_noticed(scan, right, text, place, replacement):
    """Return whether a mistake at `place` of a text is named, or changes a result, in one of some orders."""
    wrong = text[: place.start()] + place.expand(replacement) + text[place.end() :]
    for seed in range(8):
        try:
            found, _ = run_resident(replace(scan, seed=seed), lambda t: wrong if t == text else t, 2_000_000)
        except (*FAULTS, ExchangeError):
            return True
        if not all(torch.equal(found[name], value) for name, value in right.items()):
            return True
    return False


@pytest.mark.parametrize(
    "tiling, case, pattern, replacement, least",
    [
        (ALONE, SMALL, BARRIER, "", 4),
        (COUNTED, SMALL, BARRIER, "", 4),
        (COUNTED, SMALL, r"bar\.warp\.sync -1;", "", 4),
        (TAGGED, SMALL, BARRIER, "", 4),
        (COUNTED, SMALL, r"\.(?:release|acquire)\.", ".relaxed.", 5),
        # A weak store against strong loads, and the other way round: a race in PTX's memory model.
        (TAGGED, SMALL, r"st\.relaxed\.gpu\.", "st.", 4),
        (TAGGED, SMALL, r"ld\.relaxed\.gpu\.(global\.v)", r"ld.\1", 4),
        # The wait itself: gone on with whatever came.
        (TAGGED, SMALL, r"vote\.sync\.any\.pred p, p, -1;", "setp.ne.u32 p, left, left;", 2),
    ],
    ids=[
        "barriers-alone",
        "barriers-counted",
        "warp-barriers",
        "barriers-tagged",
        "orders",
        "weak-stores",
        "weak-loads",
        "waits",
    ],
)
def test_mistakes_are_noticed(tiling, case, pattern, replacement, least):
    scan = ResidentScan(case, tiling)
    right, texts = texts_of(scan)
    places = [(text, place) for text in texts for place in re.finditer(pattern, text, re.M)]
    silent = [
        f"{place[0].strip()!r} of line {text[: place.start()].count(chr(10)) + 1}"
        for text, place in places
        if not is_noticed(scan, right, text, place, replacement)
    ]
    assert len(places) >= least
    assert not silent


def test_programs_that_stop_waiting_raise(monkeypatch):
    monkeypatch.setattr(resident, "PATIENCE", 1)
    with pytest.raises(ExchangeError, match="batch tiles"):
        run_resident(ResidentScan(Case(3, 6, units=64, **BF16), TAGGED))


# Which calls they serve.


@pytest.mark.parametrize("units", [1, 64, 128, 192, 512, 650, 1024, 1536, 2048])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_every_size_has_a_tiling_in_half_precision(units, kernel):
    device = DEVICES[90]
    assert not tilings.reasons_against(kernel, units, "bfloat16", "ieee", 16, device)
    tiling = tilings.choose(kernel, units, 2, 16, device)
    assert tiling is not None and not tilings.reasons_against_tiling(tiling, kernel, units, 2, device)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(dtype="float32", precision="ieee"), "precision is 'ieee'"),
        (dict(device=replace(DEVICES[90], target="gfx942")), "not for gfx942"),
        (dict(device=replace(DEVICES[90], target="sm_75")), "not sm_75"),
        (dict(units=4096), "fit neither registers nor shared memory"),
        (dict(batch=2**24), "32 bits"),
        (dict(units=1024, members=3), "3 scans of units=1024 cannot run at once"),
        (dict(device=replace(DEVICES[90], cooperative=False), units=256), "fit neither"),
    ],
)
def test_what_they_do_not_serve_has_a_reason(changes, reason):
    call = dict(kernel="forward", units=256, dtype="bfloat16", precision="ieee", batch=16, device=DEVICES[90])
    assert reason in "; ".join(tilings.reasons_against(**(call | changes)))


def test_an_older_triton_is_a_reason(monkeypatch):
    monkeypatch.setattr(tilings, "triton_release", lambda: (3, 5))
    reasons = tilings.reasons_against("forward", 256, "bfloat16", "ieee", 16, DEVICES[90])
    assert reasons == ["the kernels with weights in registers need triton 3.6 or newer, found 3.5"]
