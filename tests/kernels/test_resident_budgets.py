"""What the shipped tilings of the resident kernels compile to, held to the budgets of a step: no GPU is needed."""

import functools

import pytest

pytest.importorskip("triton.experimental.gluon.language.nvidia.ampere")

from tritongru.backends.triton import tilings
from tritongru.environment import is_interpreted

if is_interpreted():
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from tritongru.tools.replay import residents, sass
from tritongru.tools.replay.residents import DEVICES, FEATURES, broken_budgets

compile_resident = functools.cache(residents.compile_resident)


def tiling_of(kernel, units, target, drops=0, batch=16, itemsize=2):
    tiling = tilings.choose(kernel, units, itemsize, batch, DEVICES[target], drops)
    assert tiling is not None
    return tiling


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(
    "units, target", [*((units, "sm_90") for units in (64, 128, 256, 512, 1024)), (128, "sm_80"), (1024, "sm_80")]
)
def test_shipped_tilings_keep_the_budgets(units, kernel, target):
    report = compile_resident(kernel, target, tiling_of(kernel, units, target), units)
    assert not broken_budgets(report)
    assert report.registers <= report.tiling.max_registers()
    assert report.shared <= DEVICES[target].shared_memory


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(
    "units, dtype, batch, target",
    [(1536, "bf16", 16, "sm_90"), (2112, "bf16", 16, "sm_90"), (512, "fp32", 16, "sm_90"), (650, "bf16", 16, "sm_90"),
     (256, "bf16", 512, "sm_90"), (1024, "bf16", 64, "sm_90"), (20, "fp32", 16, "sm_80"),
     (128, "bf16", 600, "sm_90"), (100, "fp16", 600, "sm_80")],
)  # fmt: skip
def test_no_tiling_spills_in_the_time_loop(units, dtype, batch, target, kernel):
    size = residents.ITEM_SIZES[dtype]
    report = compile_resident(
        kernel, target, tiling_of(kernel, units, target, batch=batch, itemsize=size), units, dtype
    )
    assert sass.spills_in(report.step) == 0
    assert report.shared <= DEVICES[target].shared_memory


# What each may add to the cycles of latency of a plain call: of those of the hardware's own, and of a second exchange.
PRICES = {"reset_after=False": 1.8, "exact gates": 1.2}


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("name", FEATURES)
def test_what_a_feature_costs(name, kernel):
    asked = FEATURES[name][kernel]
    if not asked:
        pytest.skip("no feature of this kernel")
    plain = compile_resident(kernel, "sm_90", tiling_of(kernel, 256, "sm_90"), 256)
    report = compile_resident(kernel, "sm_90", tiling_of(kernel, 256, "sm_90", asked.get("DROPS", 0)), 256, **asked)
    assert sass.spills_in(report.step) == 0
    # Three dropout masks make three sums of the backward scan, and three arrays that the forward's programs ask for.
    dearest = 1.2 if name == "dropout 3" else PRICES.get(name, 1.1)
    assert report.latency <= dearest * plain.latency


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_one_program_holds_128_units_where_rows_are_many(kernel):
    """Ranked by the replay: behind programs of 16 units with 16 and 32 rows, ahead of those with 64."""
    few, more, many = (tiling_of(kernel, 128, "sm_90", batch=batch) for batch in (256, 512, 513))
    assert [(t.exchange, t.block_b) for t in (few, more, many)] == [("marked", 16), ("marked", 32), ("none", 16)]
    tallest = tilings.Tiling(64, 16, 4, 1, "marked")
    cycles = [compile_resident(kernel, "sm_90", tiling, 128).replay.cycles for tiling in (few, more, many, tallest)]
    assert cycles == sorted(cycles)


def test_a_broken_budget_is_named():
    tiling = tilings.Tiling(16, 16, 2, 1, "marked", 3)
    report = compile_resident("forward", "sm_90", tiling, 128)
    found = broken_budgets(report, cycles=100)
    assert [reason.partition(":")[0] for reason in found] == [
        "weight bytes from shared memory",
        "cycles",
    ]
    with pytest.raises(ValueError, match="sideways"):
        compile_resident("sideways", "sm_90", tiling, 128)
