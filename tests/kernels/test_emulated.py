"""The compiled kernels, run instruction by instruction on an emulated GPU: right results, and no fault of memory.

Every access is checked for bounds, alignment, uninitialised memory and races; see tests/emulator. Mistakes are then put
into the compiled code, and the machine must name them. `make emulate` draws many more calls.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.knobs")
from triton import knobs

from tritongru.backends.triton import probe, rows
from tritongru.backends.triton.kernels import probe as kernel
from tritongru.environment import is_interpreted
from tritongru.tools.oracle.cases import Case
from tritongru.tuning.configs import LaunchConfig

if is_interpreted() or not hasattr(knobs.runtime, "add_stages_inspection_hook"):
    pytest.skip("needs Triton's compiler, 3.5 or newer", allow_module_level=True)

from emulator.driver import emulated_gpu
from emulator.machine import SynchronisationError
from emulator.memory import AccessError
from emulator.races import RaceError
from emulator.scans import Scan, check, run


def single(units, **changes):
    return replace(LaunchConfig("single", 16, units, units, 4), **changes)


def persistent(**changes):
    return replace(LaunchConfig("persistent", 16, 16, 32, 2), **changes)


STEPS = LaunchConfig("steps", 16, 16, 32, 2)
BF16 = dict(dtype="bfloat16", input_size=3)
FP16 = dict(dtype="float16", input_size=3)
FP32 = dict(dtype="float32", input_size=3, precision="ieee")
TF32 = dict(dtype="float32", input_size=3, precision="tf32")
EVERYTHING = dict(mask=True, resets=True, reset_state="rows", recurrent_dropouts=3)

SCANS = [
    Scan(Case(18, 4, units=32, **BF16), single(32)),
    Scan(Case(3, 3, units=33, reset_after=False, mask=True, **FP16), single(64)),
    Scan(Case(3, 3, units=20, go_backwards=True, resets=True, reset_state="initial", **TF32), single(32, num_warps=1)),
    Scan(Case(18, 4, units=32, **BF16, **EVERYTHING), persistent()),
    Scan(Case(3, 4, units=33, reset_after=False, **TF32), persistent(num_warps=4)),
    Scan(Case(3, 4, units=32, reset_after=False, layout="torch", **FP16), persistent(num_warps=4)),
    Scan(Case(3, 4, units=48, reset_after=False, lengths=True, **BF16), persistent(block_h=32)),
    Scan(Case(3, 3, units=20, resets=True, **TF32), persistent(block_k=16)),
    Scan(Case(18, 3, units=32, recurrent_dropouts=1, **BF16), persistent(num_warps=1), capability=80),
    Scan(Case(3, 2, units=32, **BF16), persistent(), capability=100),
    Scan(Case(40, 2, units=32, **BF16), persistent(block_b=64, num_warps=4)),
    Scan(Case(40, 2, units=20, reset_after=False, **TF32), single(32, block_b=64)),
    Scan(Case(18, 2, units=32, reset_after=False, mask=True, zero_output_for_mask=True, **BF16), STEPS),
    Scan(Case(3, 2, units=20, recurrent_dropouts=3, **TF32), STEPS, capability=80),
    *(
        Scan(Case(2, 2, units=16, activation=f, recurrent_activation=g, **FP32), single(16))
        for f, g in [("relu", "hard_sigmoid"), ("elu", "softsign"), ("selu", "leaky_relu"), ("softplus", "linear")]
    ),
    Scan(Case(2, 2, units=16, activation="exponential", **BF16), single(16)),
    Scan(Case(20, 3, units=16, **BF16)),
    Scan(Case(3, 3, units=20, zoneout=True, gradient_clip=0.1, mask=True, **TF32), single(32)),
    Scan(Case(3, 3, units=32, zoneout=True, reset_after=False, go_backwards=True, **BF16), persistent()),
    Scan(Case(3, 3, units=32, zoneout=True, gradient_clip=0.1, resets=True, **BF16), persistent()),
    Scan(Case(3, 2, units=20, zoneout=True, reset_after=False, gradient_clip=0.1, **TF32), STEPS),
    Scan(Case(18, 3, units=32, layer_norm="separate", **BF16), single(32)),
    Scan(Case(3, 3, units=20, layer_norm="joint", mask=True, recurrent_dropouts=3, **TF32), single(32)),
    Scan(Case(3, 2, units=33, layer_norm="joint", layout="torch", resets=True, **FP16), capability=80),
    Scan(Case(2, 2, units=128, layer_norm="joint", lengths=True, **BF16)),
    Scan(Case(3, 2, units=100, layer_norm="joint", zoneout=True, **BF16, **EVERYTHING)),
    Scan(Case(2, 2, units=65, layer_norm="separate", layout="torch", go_backwards=True, **FP16), capability=80),
    Scan(Case(2, 2, units=9, layer_norm="separate", zoneout=True, go_backwards=True, use_bias=False, **FP32)),
]


@pytest.mark.parametrize("scan", SCANS, ids=str)
def test_both_directions(scan):
    check(scan)


def test_more_tiles_than_fit_at_once_go_in_waves():
    """Three tiles of two programs where five programs fit: two launches in each direction."""
    gpu = check(Scan(Case(35, 2, units=32, mask=True, **BF16), persistent(), processors=5))
    assert [gpu.launches.count(f"gru_{name}_kernel") for name in ("forward", "backward")] == [2, 2]


def probe_of(method="counter", dtype=torch.bfloat16, num_warps=2):
    return probe.Probe(method, programs=3, tiles=2, dtype=dtype, device="cpu", num_warps=num_warps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("method", probe.METHODS)
def test_every_round_reads_what_all_have_published(method, dtype):
    for seed in range(3):
        exchange = probe_of(method, dtype)
        with emulated_gpu(seed=seed):
            exchange.run(4, patience=10_000)
        assert not exchange.faults.any()
        torch.testing.assert_close(exchange.gathered, exchange.expected(4), rtol=0, atol=0)


@pytest.mark.parametrize("has_resets", [False, True])
def test_stops(has_resets):
    active = torch.rand(150, 20) < 0.01
    mask, resets = active.to(torch.uint8), (torch.rand(150, 20) < 0.01).to(torch.uint8)
    with emulated_gpu():
        _, stops = rows.plan_rows(mask, resets if has_resets else None, False, (1, 2), 132)
    steps = torch.arange(1, 151)[:, None] * ((mask | resets) if has_resets else mask)
    assert stops.tolist() == steps.amax(0).tolist()


# Mistakes in compiled code. The probe does what a scan's step does, and compiles quickly.

# Several without an instruction between them are one: Triton has its own before a release from 3.9 on.
BARRIER = r"^\s*bar\.sync\s+0;$(?:\n\s*(?:(?:\.loc|//).*|bar\.sync\s+0;)?$)*"


def places_of(pattern):
    """Return how often `pattern` stands in the PTX of the probe."""
    texts = []
    with emulated_gpu(edit=lambda text: texts.append(text) or text):
        probe_of().run(1, patience=100)
    return len(re.findall(pattern, texts[0], re.M))


def run_edited(pattern, replacement, place, seed=0, patience=2_000):
    """Run the probe with the `place`-th occurrence of `pattern` replaced; True if its results are right."""

    def edit(text):
        match = list(re.finditer(pattern, text, re.M))[place]
        return text[: match.start()] + match.expand(replacement) + text[match.end() :]

    exchange = probe_of()
    with emulated_gpu(edit=edit, seed=seed, limit=2_000_000):
        exchange.run(4, patience)
    return not exchange.faults.any() and bool((exchange.gathered == exchange.expected(4)).all())


@pytest.mark.parametrize("order", ["release", "acquire"])
def test_relaxed_orders_are_found(order):
    pattern = rf"\.{order}\."
    assert (count := places_of(pattern))
    for place in range(count):
        with pytest.raises(RaceError, match="of blocks"):
            # Not every poll of a loop comes in every order of the programs.
            for seed in range(10):
                run_edited(pattern, ".relaxed.", place, seed)


def test_missing_barriers_are_found():
    """Each block barrier in turn: without it something is not ordered."""
    count, silent = places_of(BARRIER), []
    for place in range(count):
        try:
            for seed in range(10):
                assert run_edited(BARRIER, "", place, seed)
        except (RaceError, AccessError):
            continue
        silent.append(place)
    assert count > 3 and not silent


WARPGROUPS = Scan(Case(40, 1, units=32, **BF16), single(32, block_b=64))
COPIES = Scan(Case(3, 3, units=32, **BF16), STEPS)


@pytest.mark.parametrize(
    "scan, pattern, error, message",
    [
        (WARPGROUPS, r"fence\.proxy\.async.*;", AccessError, "without `fence.proxy.async`"),
        (WARPGROUPS, r"wgmma\.wait_group.*;", AssertionError, "nan"),
        (COPIES, r"cp\.async\.wait_group.*;", AccessError, "waited for"),
    ],
    ids=["fence", "product", "copy"],
)
def test_asynchronous_work_that_is_not_waited_for_is_found(scan, pattern, error, message):
    with pytest.raises(error, match=message):
        results, _ = run(scan, lambda text: re.sub(pattern, "", text))
        assert results["outputs"].isfinite().all(), "nan in the outputs"


def test_a_missing_guard_is_found():
    with pytest.raises((AccessError, RaceError), match="in no buffer|which has|nothing orders"):
        run_edited(r"@%p\d+ (ld\.global\.cg)", r"\1", -1)


def test_a_missing_store_is_found():
    with pytest.raises(AccessError, match="never written"):
        run_edited(r"^\s*(@%p\d+ )?st\.shared(::cta)?\..*;$", "", 0)


def test_a_grid_that_cannot_be_resident_is_refused():
    with pytest.raises(RuntimeError, match="too many blocks"), emulated_gpu(processors=5):
        probe_of().run(1, patience=10)


def test_a_launch_that_is_not_cooperative_is_found(monkeypatch):
    """Programs that wait for one that has not begun give up, nothing hangs, and they read what is written later."""
    monkeypatch.setattr(probe.Probe, "options", lambda self: dict(num_warps=2, launch_cooperative_grid=False))
    with emulated_gpu(), pytest.raises(RaceError, match="of blocks"):
        probe_of().run(1, patience=20)


def test_one_slot_for_every_round_is_found():
    """With one slot, a fast program overwrites a value that a slow one still reads, in some order of them."""
    source = Path(kernel.__file__).read_text().split("\n")
    (line,) = [i for i, text in enumerate(source, 1) if "o_slot = (round & 1)" in text]
    pattern = rf"(probe\.py:{line}:\d+\s*\n\s*and\.b32\s+%r\d+, %r\d+, )1;"
    assert places_of(pattern) == 1
    with pytest.raises(RaceError, match="of blocks"):
        for seed in range(10):
            run_edited(pattern, r"\g<1>0;", 0, seed)
    assert run_edited(pattern, r"\g<1>1;", 0)


def test_programs_that_wait_for_ever_are_stopped():
    with pytest.raises(SynchronisationError, match="not ended"):
        with emulated_gpu(limit=20_000, edit=lambda text: text.replace(".release.add.", ".release.max.")):
            probe_of().run(2, patience=1 << 30)
