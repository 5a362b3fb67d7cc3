"""Tables of launch configurations: what is believed, what is passed over, and where a choice comes from."""

import json
import re
import sys
import warnings
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongru.tuning import choices, configs, table_files, tables
from tritongru.tuning.configs import PERSISTENT, SINGLE, STEPS, STREAMED, Device, LaunchConfig
from tritongru.tuning.tables import Entry, Key, Table

H100 = Device(132, 227 * 1024, name="Test GPU", target="sm_90")
KEY = Key("forward", "bfloat16", "ieee", 256)
CONFIG = LaunchConfig(PERSISTENT, 16, 32, 128, 4)
MADE = {"kind": "modelled", "date": "2026-01-02"}


def make_table(*entries: Entry) -> Table:
    return Table({"name": "Test GPU"}, {"p": MADE}, list(entries))


def entry(key=KEY, batches=(1, 4096), config=CONFIG, **more) -> Entry:
    return Entry(key, batches, config, 1.5, "p", **more)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders for the user's and the shipped tables, both empty."""
    user, shipped = tmp_path / "user", tmp_path / "shipped"
    user.mkdir(), shipped.mkdir()
    monkeypatch.setenv("TRITONGRU_CACHE", str(user))
    monkeypatch.setattr(choices, "SHIPPED", shipped)
    choices.forget()
    choices._warn_once.cache_clear()
    yield user / "test-gpu.json", shipped / "sm_90-132.json"
    choices.forget()
    choices._warn_once.cache_clear()


def test_what_is_written_is_read():
    table = make_table(entry(), entry(replace(KEY, flags=("dropout", "masked")), (16, 64), shared=7, registers=9))
    again = table_files.parse(json.loads(table_files.dump(table)))
    assert sorted(map(str, again.entries)) == sorted(map(str, table.entries))
    assert set(again.entries) == set(table.entries) and again.provenances == table.provenances and not again.problems


def test_buckets():
    assert [tables.bucket(b) for b in (1, 2, 3, 17, 4096, 4097)] == [1, 2, 4, 32, 4096, 4096]


@pytest.mark.parametrize(
    "old, new, left",
    [
        ((1, 64), (1, 64), []),
        ((1, 64), (16, 16), [(1, 8), (32, 64)]),
        ((1, 64), (32, 4096), [(1, 16)]),
        ((16, 64), (1, 16), [(32, 64)]),
        ((1, 8), (16, 16), [(1, 8)]),
    ],
)
def test_a_new_entry_takes_the_place_of_the_old_in_its_buckets(old, new, left):
    other = replace(CONFIG, num_warps=8)
    merged = tables.merge([entry(batches=old)], [entry(batches=new, config=other)])
    assert sorted(e.batches for e in merged if e.config == CONFIG) == left
    assert [e.batches for e in merged if e.config == other] == [new]


def test_another_key_stays():
    assert len(tables.merge([entry()], [entry(replace(KEY, units=512))])) == 2


@pytest.mark.parametrize(
    "units, batch, nearest, found",
    [
        (256, 16, False, 256),
        (240, 16, False, None),
        (240, 16, True, 256),
        (127, 16, True, None),  # not a multiple of 16
        (112, 16, True, None),  # more than twice as many
        (272, 16, True, None),  # fewer units than asked for
        (256, 128, True, None),  # another bucket
        (98, 16, True, 100),
    ],
)
def test_nearest(units, batch, nearest, found):
    table = make_table(entry(replace(KEY, units=100), (1, 64)), entry(batches=(1, 64)))
    got = choices.find(table, replace(KEY, units=units), batch, nearest)
    assert (got and got.key.units) == found


def test_float16_takes_the_entries_of_bfloat16_in_a_shipped_table():
    half = replace(KEY, dtype="float16")
    assert choices.find(make_table(entry()), half, 1, nearest=True) == entry()
    assert choices.find(make_table(entry()), half, 1) is None


def test_the_order_of_the_sources(places):
    user, shipped = places
    assert choices.choose(KEY, 16, H100).source == "formula"
    shipped.write_text(table_files.dump(make_table(entry())))
    choices.forget()
    choice = choices.choose(KEY, 16, H100)
    assert (choice.source, choice.config) == ("shipped", CONFIG)
    assert "1.50 us per step of 4096 rows modelled on 2026-01-02" in choice.reason and "sm_90-132.json" in choice.reason
    mine = replace(CONFIG, block_h=64)
    user.write_text(table_files.dump(make_table(entry(batches=(16, 16), config=mine))))
    choices.forget()
    assert choices.choose(KEY, 9, H100).config == mine
    assert choices.choose(KEY, 17, H100).config == CONFIG  # the user's table serves what was tuned, and nothing near it
    assert choices.choose(KEY, 16, replace(H100, name="")).config == CONFIG
    assert choices.choose(KEY, 16, replace(H100, target="sm_75", name="")).source == "formula"


def test_the_nearest_device_of_the_target(places):
    _, shipped = places
    for count, rows in ((132, 16), (60, 32)):
        config = replace(CONFIG, block_b=rows)
        shipped.with_name(f"sm_90-{count}.json").write_text(table_files.dump(make_table(entry(config=config))))
    assert choices.choose(KEY, 1, replace(H100, processors=114)).config.block_b == 16
    assert choices.choose(KEY, 1, replace(H100, processors=64)).config.block_b == 32


@pytest.mark.parametrize(
    "bad, word",
    [
        (entry(replace(KEY, units=4240), config=LaunchConfig(STREAMED, 16, 32, 32)), "133 programs of a tile"),
        (entry(config=replace(CONFIG, block_h=1024, num_warps=16)), "sums per thread"),
        (entry(shared=300_000), "300000 bytes of shared memory"),
        (entry(config=LaunchConfig(SINGLE, 16, 64, 64)), "does not hold units=256"),
        (entry(replace(KEY, units=4096), config=LaunchConfig(PERSISTENT, 16, 32, 64)), "bytes of weights per program"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(places, bad, word):
    """In the reason of the choice; the user's own in a warning too, once."""
    user, shipped = places
    batch = bad.batches[1]
    named = f"units={bad.key.units}.*{word}"
    user.write_text(table_files.dump(make_table(bad)))
    with pytest.warns(RuntimeWarning, match=f"test-gpu.json.*{named}"):
        choice = choices.choose(bad.key, batch, H100)
    assert choice.source == "formula" and re.search(f"test-gpu.json: .*{named}", choice.reason)
    choices.choose.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choices.choose(bad.key, batch, H100).source == "formula"
        user.unlink()
        shipped.write_text(table_files.dump(make_table(bad)))
        choices.forget()
        choice = choices.choose(bad.key, batch, H100)
    assert choice.source == "formula" and re.search(f"sm_90-132.json: .*{named}", choice.reason)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"format": 2}', b'{"format": 1, "entries": []}', b"[" * 100_000],
    ids=repr,
)
def test_a_damaged_table_is_named_once_and_ignored(places, content):
    places[0].write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(places[0]))):
        table_files.read(places[0])
    with pytest.warns(RuntimeWarning, match="test-gpu.json.*ignored"):
        assert choices.choose(KEY, 16, H100).source == "formula"
    assert places[0].read_bytes() == content


def test_a_huge_file_is_not_read(places, monkeypatch):
    monkeypatch.setattr(table_files, "LARGEST_FILE", 10)
    places[0].write_text(table_files.dump(make_table(entry())))
    with pytest.raises(ValueError, match="more than the 10 allowed"):
        table_files.read(places[0])


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "sideways"}, {"kernel": ["forward"]}, {"dtype": "float64"}, {"precision": None}, {"units": 0},
        {"units": True}, {"units": 256.0}, {"units": 10**400}, {"units": "256"}, {"flags": "masked"},
        {"flags": ["masked", "dropout"]}, {"flags": ["masked", "masked"]}, {"flags": [[]]}, {"batches": [1]},
        {"batches": [64, 1]}, {"batches": [3, 3]}, {"batches": [0, 1]}, {"batches": [1, 8192]}, {"batches": None},
        {"microseconds": -1}, {"microseconds": float("nan")}, {"microseconds": float("inf")}, {"microseconds": "1"},
        {"shared": -1}, {"shared": 1e9}, {"registers": "many"}, {"provenance": "unknown"}, {"config": None},
        {"config": {}}, {"config": {"schedule": "persistent", "block_b": 16, "block_h": 16}},
    ]
    + [
        {"config": {"schedule": "persistent", "block_b": 16, "block_h": 16, "block_k": 64} | change}
        for change in (
            {"schedule": "magic"}, {"schedule": 3}, {"block_b": 24}, {"block_b": 8}, {"block_b": -16},
            {"block_h": 2**40}, {"block_k": 64.0}, {"num_warps": 0}, {"num_warps": True}, {"num_warps": "4"},
            {"exchange": "telepathy"}, {"__class__": "x"}, {"extra": 1},
        )
    ],
    ids=lambda change: json.dumps(change)[:60],
)  # fmt: skip
def test_hostile_entries_are_left_out(change):
    content = json.loads(table_files.dump(make_table(entry(), entry(replace(KEY, units=512)))))
    content["entries"][0] |= change
    table = table_files.parse(content)
    assert [e.key.units for e in table.entries] == [512]
    assert len(table.problems) == 1 and table.problems[0].startswith("entry 0: ")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
LINE = json.loads(table_files.dump(make_table(entry())))["entries"][0]


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([*LINE, "other"]), anything),
    st.dictionaries(st.sampled_from(list(LINE["config"])), anything),
)
def test_no_value_does_more_than_leave_its_entry_out(change, config):
    content = json.loads(table_files.dump(make_table(entry())))
    content["entries"][0] |= change
    if isinstance(content["entries"][0].get("config"), dict):
        content["entries"][0]["config"] |= config
    table = table_files.parse(content)
    assert len(table.entries) + len(table.problems) == 1


@settings(deadline=None)
@given(anything)
def test_what_is_no_table_is_a_value_error(content):
    with pytest.raises(ValueError):
        table_files.parse(content)


def test_the_place_of_the_users_tables(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITONGRU_CACHE", str(tmp_path))
    path = choices.user_path("NVIDIA H100 80GB HBM3 / ../../x")
    assert path.parent == tmp_path and path.name == "nvidia-h100-80gb-hbm3-x.json"
    assert choices.user_path("") is None
    monkeypatch.delenv("TRITONGRU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert choices.user_folder() == tmp_path / "xdg" / "tritongru"  # platformdirs, where it is installed, agrees
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.setattr(choices.importlib.util, "find_spec", lambda name: None)
    assert choices.user_folder() == tmp_path / "xdg" / "tritongru"


# Every regime has a configuration that the device can run, and a reason.

DEVICES = {
    "a100": Device(108, 163 * 1024, target="sm_80"),
    "h100": Device(132, 227 * 1024, target="sm_90"),
    "h100-pcie": Device(114, 227 * 1024, target="sm_90"),
    "b200": Device(148, 227 * 1024, target="sm_100"),
    "rtx4090": Device(128, 99 * 1024, target="sm_89"),
    "mi300x": Device(304, 64 * 1024, warp_size=64, target="gfx942"),
    "small": Device(14, 48 * 1024, target="sm_75"),
    "alone": Device(132, 227 * 1024, cooperative=False, target="sm_90"),
}
GRID_UNITS = (1, 9, 16, 33, 64, 100, 128, 192, 250, 256, 400, 512, 650, 768, 1000, 1024, 1536, 2000, 2048, 4096, 10_000)
GRID_BATCHES = (1, 2, 16, 17, 64, 100, 512, 4096, 5000)


@pytest.mark.parametrize("name", DEVICES)
def test_every_regime_has_a_configuration_that_fits_and_a_reason(name, monkeypatch):
    monkeypatch.setenv("TRITONGRU_CACHE", "/nonexistent")
    choices.forget()
    device, sources = DEVICES[name], set()
    flags = [(), ("masked",), tables.FLAGS]
    kinds = [("bfloat16", "ieee"), ("float16", "ieee"), *(("float32", product) for product in ("ieee", "tf32"))]
    for kernel in tables.KERNELS:
        for dtype, precision in kinds:
            for units in GRID_UNITS:
                for batch in GRID_BATCHES:
                    for group in flags:
                        key = Key(kernel, dtype, precision, units, group)
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore", RuntimeWarning)
                            choice = choices.choose(key, batch, device)
                        size = tables.ITEM_SIZES[dtype]
                        assert configs.reasons_against(choice.config, units, batch, size, device) == [], key
                        assert len(choice.reason) > 20
                        sources.add((choice.source, choice.config.schedule))
    assert {("formula", SINGLE), ("formula", STEPS)} <= sources
    assert (("shipped", PERSISTENT) in sources) == (choices.shipped_path(device) is not None and device.cooperative)


def test_a_choice_does_not_know_the_time():
    """T is in no argument: the same sizes always launch the same way."""
    assert "time" not in Key.__dataclass_fields__ and "time" not in choices.choose.__wrapped__.__code__.co_varnames


SHIPPED = sorted(choices.SHIPPED.glob("*.json"))


def test_tables_are_shipped():
    assert {path.name for path in SHIPPED} >= {"sm_80-108.json", "sm_90-132.json", "sm_100-148.json"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_tables_fit_their_device(path, monkeypatch):
    from tritongru.tools.tune.verify import misfits, table_device

    monkeypatch.setattr(configs, "triton_release", lambda: None)
    table = table_files.read(path)
    assert not table.problems
    device = table_device(table)
    assert path.name == f"{device.target}-{device.processors}.json" and choices.shipped_path(device) == path
    for record in table.provenances.values():
        assert {"kind", "date", "device", "triton", "torch", "tritongru", "kernels"} <= set(record)
    for one in table.entries:
        assert misfits(table, one) == [], str(one)
        assert 0 < one.shared <= device.shared_memory and 0 < one.registers <= 512, str(one)


@pytest.mark.parametrize("kernel", tables.KERNELS)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_entry_compiles_to_what_it_says(path, kernel):
    """One entry that is compiled fast; `make tune-verify` compiles all of them."""
    pytest.importorskip("triton.experimental.gluon", reason="needs Triton 3.4")
    from tritongru.tools.tune.workers import Job, compile_job

    table = table_files.read(path)
    mine = [one for one in table.entries if one.key.kernel == kernel]
    one = min(mine, key=lambda one: (one.key.dtype, one.key.units, one.batches))
    compiled = compile_job(Job(table.device["target"], one.key, one.config))
    # Before 3.6 Triton takes up to 256 bytes more than the version that the tables were made with.
    more = 256 if configs.triton_release() < (3, 6) else 0
    assert compiled.wrong == () and compiled.shared <= one.shared + more, str(one)


@pytest.mark.parametrize("release, source", [((3, 6), "formula"), ((3, 7), "shipped"), (None, "shipped")])
def test_products_that_an_older_triton_does_not_fence_are_passed_over(monkeypatch, release, source):
    """Streamed tiles of 64 rows, of which the shipped table has some."""
    monkeypatch.setattr(configs, "triton_release", lambda: release)
    choices.forget()
    choices._warn_once.cache_clear()
    table = choices.load(choices.shipped_path(DEVICES["h100"]))
    entry = next(one for one in table.entries if one.config.streams and one.config.block_b == 64)
    choice = choices.choose(entry.key, entry.batches[0], DEVICES["h100"])
    choices.forget()
    assert choice.source == source and (choice.config.block_b == 64) == (source == "shipped")
    assert ("no fence" in choice.reason) == (source == "formula")
