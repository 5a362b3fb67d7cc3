"""Where torch's own GRU is faster than the kernels, "auto" takes it: by a measured race, else by the schedule."""

import re
from dataclasses import replace

import pytest
import torch

from tritongru import dispatch
from tritongru.backends.triton import reasons, tilings
from tritongru.call.check import Signature
from tritongru.call.problem import Shape, Variant
from tritongru.dispatch import decide
from tritongru.tuning import choices, configs, table_files, tables
from tritongru.tuning.configs import PERSISTENT, STEPS, STREAMED, Device, LaunchConfig
from tritongru.tuning.replayed import replayed_step
from tritongru.tuning.tables import KERNELS, Entry, Key, Race, Table

H100 = Device(132, 227 * 1024, name="Test GPU", target="sm_90")
KEY = Key("forward", "bfloat16", "ieee", 512)
MADE = {"kind": "measured", "date": "2026-01-02"}


def race(units=512, batches=(1, 4096), training=True, triton=2.0, aten=1.0) -> Race:
    return Race(("bfloat16", "ieee", units, training), batches, triton, aten, "p")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the user's or the shipped table; both folders are empty at first."""
    monkeypatch.setenv("TRITONGRU_CACHE", str(tmp_path / "user"))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    places = {"user": tmp_path / "user/test-gpu.json", "shipped": tmp_path / "shipped/sm_90-132.json"}

    def write_table(place: str, *lines: Race | Entry) -> None:
        races = [line for line in lines if isinstance(line, Race)]
        entries = [line for line in lines if isinstance(line, Entry)]
        places[place].parent.mkdir(exist_ok=True)
        places[place].write_text(table_files.dump(Table({"name": "Test GPU"}, {"p": MADE}, entries, races)))
        choices.forget()

    choices.forget()
    yield write_table
    choices.forget()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU where Triton works, as far as the dispatcher asks."""
    monkeypatch.setattr(reasons, "reasons_against_environment", lambda device, index: ())
    monkeypatch.setattr(reasons, "device_limits", lambda device: H100)


def facts(units=512, batch=16, time=100, training=True, **changes) -> Signature:
    variant = Variant(reset_after=changes.pop("reset_after", True))
    shape = Shape(batch, time, 8, units)
    return Signature("cuda", torch.bfloat16, variant, units, shape, wants_gradients=training, **changes)


def test_the_loser_of_a_race_is_passed_over(write, gpu):
    write("user", race(triton=2.0, aten=1.0, training=True), race(triton=1.0, aten=2.0, training=False))
    decision = decide(facts(training=True))
    assert decision.backend == "aten"
    assert decision.rejected["triton"] == ("aten took 1.00 us per step and triton 2.00, measured on 2026-01-02",)
    assert decide(facts(training=False)).backend == "triton"
    assert decide(facts(), "triton").backend == "triton"


def test_the_users_race_comes_before_the_shipped_one(write, gpu):
    write("shipped", race(aten=1.0, triton=2.0))
    assert decide(facts()).backend == "aten"
    write("user", race(aten=2.0, triton=1.0))
    assert decide(facts()).backend == "triton"


@pytest.mark.parametrize(
    "place, asked, units, found",
    [
        ("user", 512, 512, True),
        ("user", 480, 512, False),
        ("shipped", 480, 512, True),
        ("shipped", 528, 512, False),
        ("shipped", 240, 512, False),
        ("shipped", 500, 512, False),
    ],
)
def test_near_units_are_for_shipped_tables(write, place, asked, units, found):
    write(place, race(units))
    reason = choices.reason_from_race(replace(KEY, units=asked), 16, True, H100)
    assert bool(reason) is found


def test_buckets_and_dtypes_bound_a_race(write):
    write("user", race(batches=(16, 64)))
    for batch, held in ((8, False), (9, True), (64, True), (65, False)):
        assert bool(choices.reason_from_race(KEY, batch, True, H100)) is held
    assert not choices.reason_from_race(replace(KEY, dtype="float16"), 16, True, H100)


def test_without_a_race_the_schedule_decides(write, gpu):
    assert configs.choose(4096, 16, 2, H100).schedule == STREAMED
    decision = decide(facts(units=4096))
    assert decision.backend == "aten" and "from memory at every step" in decision.rejected["triton"][0]
    assert decide(facts(units=4096, time=1)).backend == "triton"
    assert decide(facts(units=1024)).backend == "triton"


@pytest.mark.parametrize(
    "units, training, batch, backend",
    [
        (64, False, 16, "triton"), (128, False, 16, "triton"), (192, False, 16, "triton"), (208, False, 16, "triton"),
        (64, True, 16, "triton"), (128, True, 16, "triton"), (144, True, 16, "triton"),
        (128, True, 600, "aten"), (128, False, 2048, "aten"),  # one program for each 16 rows, one launch and two
        (100, False, 16, "aten"),  # not a multiple of 16, of which no step was replayed
    ],
)  # fmt: skip
def test_where_cudnn_is_at_its_best_the_replay_must_be_below_what_was_published(
    write, gpu, units, training, batch, backend
):
    decision = decide(facts(units, batch, training=training))
    assert decision.backend == backend
    if backend == "aten":
        (reason,) = decision.rejected["triton"]
        assert f"units={units}" in reason and "0.72 us per step published" in reason and "measured" in reason
    assert decide(facts(units, batch, training=training, has_mask=True)).backend == "triton"


def test_a_race_says_more_than_a_replay(write, gpu):
    write("user", race(128, triton=1.0, aten=2.0))
    assert decide(facts(128)).backend == "triton"
    write("user", race(64, triton=2.0, aten=1.0))
    assert "measured on" in decide(facts(64)).rejected["triton"][0]


def test_a_replayed_step_is_that_of_the_tiling_that_runs():
    for kernel, size in (("forward", 2), ("backward", 2), ("forward", 4)):
        dtype = "bfloat16" if size == 2 else "float32"
        tiling = tilings.choose(kernel, 256, size, 16, H100)
        assert 0.5 < replayed_step(kernel, dtype, 256, str(tiling)) < 1.5
        assert replayed_step(kernel, dtype, 256, str(replace(tiling, block_b=64))) is None
    assert replayed_step("forward", "float16", 4096, "marked 16x16, 8x1 warps") is None


def test_many_launches_of_programs_that_wait_lose(write, gpu):
    resident = LaunchConfig(PERSISTENT, 32, 32, 64)  # 32 programs a tile, 4 tiles at once on 132 multiprocessors
    write(
        "user", *(Entry(replace(KEY, kernel=kernel, units=1024), (1, 4096), resident, 9.0, "p") for kernel in KERNELS)
    )
    most = 4 * 32 * configs.MOST_WAVES
    assert decide(facts(units=1024, batch=most)).backend == "triton"
    decision = decide(facts(units=1024, batch=most + 1))
    assert decision.backend == "aten" and "5 launches, one after another" in decision.rejected["triton"][0]
    assert decide(facts(units=1024, batch=most + 1, has_mask=True)).backend == "triton"


def test_one_kernel_by_steps_is_enough_to_lose_a_training_call(write, gpu):
    slow = LaunchConfig(STEPS, 16, 32, 32)
    write("user", Entry(replace(KEY, kernel="backward"), (1, 4096), slow, 9.0, "p"))
    assert decide(facts(training=True)).backend == "aten"
    assert decide(facts(training=False)).backend == "triton"


@pytest.mark.parametrize("changes", [dict(has_mask=True), dict(reset_after=False), dict(recurrent_dropouts=1)])
def test_what_aten_cannot_run_stays_on_the_kernels(write, gpu, changes):
    write("user", race())
    assert decide(facts(**changes)).backend == "triton"
    assert decide(facts(units=4096, **changes)).backend == "triton"


def test_explain_says_how_the_kernels_are_launched(write, gpu):
    config = LaunchConfig(PERSISTENT, 16, 32, 64, 2)
    write("user", Entry(KEY, (1, 4096), config, 1.5, "p"))
    forward, backward = reasons.describe_launches(facts())
    assert forward.startswith("forward: persistent 16x32x64, 2 warps (user): ") and "measured" in forward
    assert backward.startswith("backward: resident "), "no table of the user's says otherwise"
    assert re.search(r"registers; 1\.\d\d us per step and tile by the replay, not measured", backward)
    assert len(reasons.describe_launches(facts(training=False))) == 1
    assert str(dispatch.Decision("triton", {}, (forward,))) == f"backend: triton\n  {forward}"


def test_races_are_written_and_read(write, tmp_path):
    write("user", race(batches=(1, 8)), race(batches=(16, 16), training=False))
    table = table_files.read(tmp_path / "user/test-gpu.json")
    assert set(table.races) == {race(batches=(1, 8)), race(batches=(16, 16), training=False)} and not table.problems
    merged = tables.merge(table.races, [race(batches=(4, 4), aten=7.0)])
    assert sorted((r.batches, r.aten) for r in merged if r.key[3]) == [((1, 2), 1.0), ((4, 4), 7.0), ((8, 8), 1.0)]


@pytest.mark.parametrize(
    "name, value",
    [("training", 1), ("aten", 0), ("triton", "1"), ("units", 0), ("dtype", "int8"), ("batches", [1, 3]),
     ("provenance", "q")],
)  # fmt: skip
def test_a_wrong_race_is_left_out_and_named(name, value):
    right = {"dtype": "bfloat16", "precision": "ieee", "units": 5, "training": True, "batches": [1, 8], "triton": 1.0,
             "aten": 2.0, "provenance": "p"}  # fmt: skip
    content = {
        "format": 1,
        "device": {},
        "provenances": {"p": MADE},
        "entries": [],
        "races": [right | {name: value}, right],
    }
    table = table_files.parse(content)
    assert len(table.races) == 1 and len(table.problems) == 1 and table.problems[0].startswith("race 0: ")
