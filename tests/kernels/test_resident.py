"""The kernels with weights in registers, compiled and run instruction by instruction on an emulated GPU.

Gluon has no interpreter, so the machine of tests/emulator proves what the interpreter proves for the other kernels.
Mistakes are then put into the compiled code, and the machine must name them. `make emulate` draws many more calls.
"""

import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.ampere")
from triton import knobs

import tritongru
from tritongru import GRU, Bidirectional, compat, dispatch, faults
from tritongru.backends.triton import families, launching, resident, tilings
from tritongru.backends.triton.tilings import Tiling
from tritongru.call.errors import ExchangeError
from tritongru.call.problem import Variant
from tritongru.environment import is_interpreted
from tritongru.tools.oracle.cases import Case

if is_interpreted() or not hasattr(knobs.runtime, "add_stages_inspection_hook"):
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from emulator.driver import DEVICES, emulated_gpu
from emulator.machine import SynchronisationError
from emulator.memory import AccessError
from emulator.races import RaceError
from emulator.residents import ResidentScan, check_resident, run_resident

ALONE = Tiling(16, 32, 1, 4, "none")
MARKED = Tiling(16, 16, 2, 1, "marked")
BF16 = dict(dtype="bfloat16", input_size=3)
FP16 = dict(dtype="float16", input_size=3)
TF32 = dict(dtype="float32", input_size=3, precision="tf32")
EVERYTHING = dict(mask=True, resets=True, reset_state="rows", recurrent_dropouts=3)
TURNED = dict(reset_after=False, layout="torch", go_backwards=True, resets=True, reset_state="steps")
SHORT = dict(recurrent_dropouts=1, lengths=True, zero_output_for_mask=True)

SCANS = [
    ResidentScan(Case(18, 4, units=32, **BF16, **EVERYTHING), ALONE),
    ResidentScan(Case(18, 4, units=32, **FP16, **EVERYTHING), replace(MARKED, warps_k=1)),
    ResidentScan(Case(18, 3, units=64, **BF16, **EVERYTHING), MARKED),
    ResidentScan(Case(3, 3, units=32, **FP16, **TURNED), ALONE, approximate=True),
    ResidentScan(Case(3, 3, units=96, **FP16, **TURNED), MARKED, capability=80),
    ResidentScan(Case(3, 3, units=20, **BF16, **SHORT), ALONE),
    # States and gradients are asked for where they lie if rows are whole pieces of 16 bytes, and beside them if not.
    ResidentScan(Case(3, 3, units=20, **TF32, mask=True, resets=True), MARKED),
    ResidentScan(Case(3, 3, units=48, **TF32, **SHORT), replace(MARKED, warps_k=1)),
    ResidentScan(Case(3, 3, units=18, **TF32, **TURNED), MARKED),
    ResidentScan(Case(3, 3, units=41, **BF16, **SHORT), MARKED, capability=100),
    ResidentScan(Case(18, 2, units=25, reset_after=False, recurrent_dropouts=3, mask=True, **FP16), MARKED),
    ResidentScan(Case(3, 3, units=20, use_bias=False, initial_state=False, recompute=True, **TF32), ALONE),
    ResidentScan(Case(40, 2, units=32, **BF16), replace(MARKED, block_b=64), replace(MARKED, block_b=32)),
    # Words of two neighbours in one lane, and in two.
    ResidentScan(Case(3, 2, units=64, **BF16), replace(MARKED, warps_k=8), replace(MARKED, warps_k=4)),
    ResidentScan(Case(3, 2, units=64, **BF16), replace(MARKED, shared_gates=1), replace(MARKED, shared_gates=3)),
    ResidentScan(Case(3, 2, units=64, **FP16), Tiling(16, 32, 2, 2, "marked", 2), Tiling(16, 32, 2, 2, "marked")),
    # More parts than are waited for at once: in two groups and in four, and with a last one that is shorter.
    ResidentScan(Case(3, 2, units=104, **BF16), replace(MARKED, warps_k=1), replace(MARKED, warps_k=1, shared_gates=1)),
    ResidentScan(Case(3, 2, units=160, **BF16), MARKED),
    # More tiles than fit at once go in waves, and rows of one tile end together.
    ResidentScan(Case(35, 3, units=32, lengths=True, recurrent_dropouts=3, **BF16), MARKED, processors=5),
    ResidentScan(Case(35, 3, units=32, lengths=True, reset_after=False, **BF16), MARKED, processors=5),
    ResidentScan(Case(3, 2, units=1, **BF16), Tiling(16, 16, 1, 2, "none")),
    ResidentScan(Case(3, 2, units=100, **BF16, **EVERYTHING), Tiling(16, 128, 1, 8, "none")),
    ResidentScan(Case(1, 1, units=9, **FP16), Tiling(16, 16, 1, 1, "marked")),
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


@pytest.mark.parametrize("tiling", [ALONE, MARKED], ids=lambda tiling: tiling.exchange)
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


@pytest.mark.parametrize("tiling", [ALONE, MARKED], ids=lambda tiling: tiling.exchange)
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
    # Where time runs forward nothing happens at the last step, and in the other direction it is the first.
    mask[-1], resets[0, -1] = False, False
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


def results_of_layer(layer, *inputs, seed=0, **options) -> tuple[list[torch.Tensor], list[str]]:
    """Return what a layer gives, the gradient of everything, and the kernels that were launched, on an emulated GPU."""
    with emulated_gpu(seed=seed) as gpu:
        outputs = layer(*inputs, **options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        g = torch.Generator().manual_seed(2)
        cotangents = [torch.randn(value.shape, generator=g).to(value.dtype) for value in outputs]
        leaves = [*layer.parameters(), *(value for value in inputs if value is not None and value.requires_grad)]
        gradients = torch.autograd.grad(outputs, leaves, cotangents)
    return [*outputs, *gradients], [name for name in gpu.launches if name.startswith("resident")]


def layers_of_members():
    """Yield a name, a layer of several members, how many, and a call of it."""
    g = torch.Generator().manual_seed(3)
    x, hx = (torch.randn(*shape, generator=g).bfloat16() for shape in ((3, 5, 3), (2, 5, 32)))
    lengths, resets = torch.tensor([3, 1, 0, 2, 3]), torch.rand(3, 5, generator=g) < 0.3
    mask = torch.rand(5, 3, generator=g) < 0.7
    first = x.transpose(0, 1)
    two = dict(bidirectional=True, backend="triton", dtype=torch.bfloat16)
    keras = dict(return_sequences=True, backend="triton", dtype="bfloat16")
    yield "torch", compat.GRU(3, 32, **two), 2, (x, hx), dict(lengths=lengths, resets=resets)
    yield "dropout", compat.GRU(3, 32, recurrent_dropout=0.3, **two), 2, (x,), {}
    yield "exchange", compat.GRU(3, 96, **two), 2, (x,), dict(lengths=lengths)
    yield "keras", Bidirectional(GRU(32, return_state=True, input_size=3, **keras)), 2, (first,), dict(mask=mask)
    yield "before", Bidirectional(GRU(32, reset_after=False, input_size=3, **keras)), 2, (first,), {}
    yield "heads", GRU(48, heads=3, input_size=3, **keras), 3, (first,), dict(mask=mask)
    yield "all", compat.GRU(3, 32, heads=2, **two), 4, (x, hx), dict(lengths=lengths)


@pytest.mark.parametrize(
    "name, layer, members, inputs, options", list(layers_of_members()), ids=[case[0] for case in layers_of_members()]
)
def test_members_of_a_layer_are_one_launch_with_the_same_bits(monkeypatch, name, layer, members, inputs, options):
    inputs = [value.clone().requires_grad_() for value in inputs]
    torch.manual_seed(4)
    together, launches = results_of_layer(layer, *inputs, **options)
    assert launches == ["resident_forward_kernel", "resident_backward_kernel"]
    assert layer.last_decision.members == members
    monkeypatch.setitem(dispatch.RUNS_AT_ONCE, "triton", lambda signature: False)
    torch.manual_seed(4)
    apart, launches = results_of_layer(layer, *inputs, **options)
    assert launches == ["resident_forward_kernel"] * members + ["resident_backward_kernel"] * members
    # The input's gradient is a sum over the members, which autograd takes in the order of their calls.
    of_x = len(together) - len(inputs)
    for place, (value, right) in enumerate(zip(together, apart, strict=True)):
        if place == of_x and members > 2:
            torch.testing.assert_close(value, right, rtol=0.05, atol=0.02)
        else:
            assert torch.equal(value, right), place


def test_it_is_said_that_members_are_one_launch():
    layer = compat.GRU(3, 32, bidirectional=True, dtype=torch.bfloat16)
    x = torch.randn(2, 3, 3).bfloat16()
    with emulated_gpu():
        said = layer.explain(x, backend="triton")
        assert said.members == 2 and "triton, 2 scans at once" in str(said)
        assert [line.endswith("; 2 scans in one launch") for line in said.launches] == [True, True]
    large = compat.GRU(3, 1024, bidirectional=True, dtype=torch.bfloat16)
    with emulated_gpu(processors=100):
        said = large.explain(x, backend="triton")
        assert said.members == 1 and "2 scans one after another: 2 scans of units=1024 cannot run at once" in str(said)
        assert "resident" in said.launches[0]


def test_members_that_cannot_launch_run_one_after_another(monkeypatch):
    layer = compat.GRU(3, 32, bidirectional=True, dtype=torch.bfloat16)
    x = torch.randn(2, 3, 3).bfloat16().requires_grad_()
    right, _ = results_of_layer(layer, x, backend="triton")

    def refuse(*arguments, **options):
        raise torch.OutOfMemoryError("no room for two")

    for name in ("run_members_forward", "run_members_backward"):
        monkeypatch.setattr(resident, name, refuse)
    # One scan is a member of its own there.
    monkeypatch.setattr(families, "is_for_resident", lambda *a: len(a) > 4)
    with pytest.warns(tritongru.FallbackWarning, match="resident .several scans.*no room for two"):
        found, launches = results_of_layer(layer, x, backend="triton")
    faults.forget()
    assert not launches
    for value, expected in zip(found, right, strict=True):
        torch.testing.assert_close(value, expected, rtol=0.05, atol=0.05)


def test_a_compiled_layer_runs_members_at_once():
    layer = compat.GRU(3, 32, bidirectional=True, dtype=torch.bfloat16, backend="triton")
    x = torch.randn(3, 5, 3).bfloat16().requires_grad_()
    right, _ = results_of_layer(layer, x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found, launches = results_of_layer(compiled, x)
    assert launches == ["resident_forward_kernel", "resident_backward_kernel"]
    assert all(map(torch.equal, found, right))


def test_an_ensemble_is_one_launch():
    layers = [compat.GRU(3, 32, dtype=torch.bfloat16) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(layers)
    x = torch.randn(2, 5, 3).bfloat16()

    def call(parameters, backend="triton"):
        return torch.func.functional_call(layers[0], parameters, (x,), dict(backend=backend))[0]

    def gradient(backend):
        return torch.func.vmap(torch.func.grad(lambda p: call(p, backend).float().square().sum()))(stacked)

    with emulated_gpu() as gpu:
        outputs = torch.func.vmap(call)(stacked)
        assert [name for name in gpu.launches if name.startswith("resident")] == ["resident_forward_kernel"]
        found = gradient("triton")
        assert gpu.launches.count("resident_backward_kernel") == 1
        for member, layer in enumerate(layers):
            assert torch.equal(outputs[member], layer(x, backend="triton")[0])
    for name, right in gradient("reference").items():
        torch.testing.assert_close(found[name], right, rtol=0.05, atol=0.05)


# Mistakes in compiled code.

SMALL = Case(3, 3, units=32, **BF16)
FAULTS = (RaceError, AccessError, SynchronisationError)
HALVES = """{
.reg .b16 low, high;
mov.b32 {low, high}, w;
@p st.relaxed.gpu.global.v2.b16 \\1, {low, high};
}"""
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
        (MARKED, SMALL, BARRIER, "", 4),
        # A weak store against strong loads, and the other way round: a race in PTX's memory model.
        (MARKED, SMALL, r"st\.relaxed\.gpu\.", "st.", 4),
        (MARKED, SMALL, r"ld\.relaxed\.gpu\.(global\.v)", r"ld.\1", 4),
        # Halves of a word, each on its own.
        (MARKED, SMALL, r"@p st\.relaxed\.gpu\.global\.b32 (\[%rd\d+\]), w;", HALVES, 4),
        # The wait itself: gone on with whatever came.
        (MARKED, SMALL, r"vote\.sync\.any\.pred p, p, -1;", "setp.ne.u32 p, left, left;", 2),
    ],
    ids=["barriers-alone", "barriers-marked", "weak-stores", "weak-loads", "torn-words", "waits"],
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_nan_with_the_bits_of_a_mark_is_a_value(dtype, monkeypatch):
    """It is handed on as another NaN, and nobody waits in vain."""
    monkeypatch.setattr(launching, "PATIENCE", 200)
    bits = torch.full((3, 32), -1, dtype={2: torch.int16, 4: torch.int32}[dtype.itemsize])
    h0, mask = bits.view(dtype), torch.zeros(3, 3, dtype=torch.bool)
    mask[2, 0] = True  # so that the tile goes on
    gx, u = torch.zeros(3, 3, 96, dtype=dtype), torch.zeros(32, 96, dtype=dtype)
    with emulated_gpu():
        out, last, entering, _ = resident.run_forward(
            gx, u, None, h0, mask, None, None, None, Variant(), False, tiling=MARKED
        )
    assert last.isnan().all() and entering.isnan().all()
    assert out[2, 0].isnan().all() and not out[:2].isnan().any() and not out[2, 1:].isnan().any()


def test_units_past_the_last_do_not_meet_an_infinite_state():
    """The last piece is asked for once more, and its weights are zeros."""
    gx, u = torch.zeros(2, 3, 60).bfloat16(), torch.ones(20, 60).bfloat16()
    h0 = torch.zeros(3, 20).bfloat16()
    h0[:, -1] = float("inf")
    with emulated_gpu():
        out, *_ = resident.run_forward(gx, u, None, h0, None, None, None, None, Variant(), False, tiling=MARKED)
    assert out[..., :-1].isfinite().all() and out[..., -1].isposinf().all()


@pytest.mark.parametrize("tiling", [ALONE, MARKED], ids=lambda tiling: tiling.exchange)
@pytest.mark.parametrize("zero_masked", [False, True])
def test_a_reset_clears_a_nan_and_masked_outputs_know_nothing_of_it(tiling, zero_masked):
    gx, u = torch.zeros(4, 3, 96).bfloat16(), torch.zeros(32, 96).bfloat16()
    h0 = torch.ones(3, 32).bfloat16()
    h0[1] = torch.tensor([-1], dtype=torch.int16).view(torch.bfloat16)  # a NaN that is not that of unwritten memory
    mask, resets = torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
    mask[1], resets[2] = True, True
    if zero_masked:
        mask[1, 1] = False
    with emulated_gpu():
        out, last, entering, _ = resident.run_forward(
            gx, u, None, h0, mask, resets, None, None, Variant(zero_output_for_mask=zero_masked), False, tiling=tiling
        )
    assert not last.isnan().any() and not entering[2:].isnan().any() and entering[:2, 1].isnan().all()
    assert not out[:, [0, 2]].isnan().any() and not out[0].any()
    assert out[1:, 1].isnan().all() if not zero_masked else not out.isnan().any()


def test_programs_that_stop_waiting_raise(monkeypatch):
    monkeypatch.setattr(launching, "PATIENCE", 1)
    with pytest.raises(ExchangeError, match="batch tiles"):
        run_resident(ResidentScan(Case(3, 6, units=64, **BF16), MARKED))


# Which calls they serve.


@pytest.mark.parametrize("units", [1, 64, 128, 192, 512, 650, 1024, 1536, 2048])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_every_size_has_a_tiling_in_half_precision(units, kernel):
    device = DEVICES[90]
    assert not tilings.reasons_against(kernel, units, "bfloat16", "ieee", 16, device)
    tiling = tilings.choose(kernel, units, 2, 16, device)
    assert tiling is not None and not tilings.reasons_against_tiling(tiling, kernel, units, 2, device)


@pytest.mark.parametrize(
    "units, batch, exchange, block_b",
    [
        (16, 2113, "none", 16),  # two turns of one program for 16 rows, before one with 32 and an exchange
        (128, 256, "marked", 16), (128, 512, "marked", 32), (128, 513, "none", 16),
        (512, 129, "marked", 16), (512, 300, "marked", 32),
        (512, 1024, "marked", 64),  # four launches, before eight of 32 rows that would take a little less
    ],
)  # fmt: skip
def test_the_tiling_of_the_least_estimated_time_is_chosen(units, batch, exchange, block_b):
    tiling = tilings.choose("forward", units, 2, batch, DEVICES[90])
    assert tiling is not None and (tiling.exchange, tiling.block_b) == (exchange, block_b)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(dtype="float32", precision="ieee"), "precision is 'ieee'"),
        (dict(device=replace(DEVICES[90], target="gfx942")), "not for gfx942"),
        (dict(device=replace(DEVICES[90], target="sm_75")), "not sm_75"),
        (dict(units=4096), "fit neither registers nor shared memory"),
        (dict(batch=2**24), "32 bits"),
        (dict(units=1, batch=2**28), "32 bits"),  # in rows of 8, padded
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
