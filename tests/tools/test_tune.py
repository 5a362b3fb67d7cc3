"""The tuning sweep: its space and model, the search, what becomes of files when things go wrong, the command."""

import csv
import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tritongru.__main__ import main
from tritongru.environment import LOWEST_TRITON, reasons_against_interpreter, triton_release
from tritongru.tools.benchmark.timing import Timing
from tritongru.tools.tune import checking
from tritongru.tools.tune import measure as tune_measure
from tritongru.tools.tune import store as tune_store
from tritongru.tools.tune import sweep as tune_module
from tritongru.tools.tune import workers as tune_compile
from tritongru.tools.tune.model import MACHINES, model_step, step_floor
from tritongru.tools.tune.search import NOT_COMPILED, compile_candidates, make_entries, open_problems
from tritongru.tools.tune.space import MARGIN, Problem, list_candidates, rules_against
from tritongru.tools.tune.sweep import list_problems, tune
from tritongru.tools.tune.workers import Compiled, Compilers, Job
from tritongru.tuning import choices, configs, table_files, tables
from tritongru.tuning.configs import PERSISTENT, SINGLE, STEPS, STREAMED, Device, LaunchConfig
from tritongru.tuning.tables import Entry, Key

H100, MACHINE = Device(132, 227 * 1024, name="Test GPU", target="sm_90"), MACHINES["sm_90"]
KEY = Key("forward", "bfloat16", "ieee", 256)
CONFIG = LaunchConfig(PERSISTENT, 16, 32, 128, 4)
RECORD = {"kind": "modelled", "date": "2026-01-02", "device": "Test GPU"}
RECORD |= dict.fromkeys(("tritongru", "triton", "torch", "kernels"), "?")
PROVENANCES, IDS = {"p": RECORD}, dict.fromkeys(tables.KINDS, "p")
needs_triton = pytest.mark.skipif(not tune_module.choices.importlib.util.find_spec("triton"), reason="needs triton")
needs_compiler = pytest.mark.skipif((triton_release() or (0, 0)) < LOWEST_TRITON, reason="needs Triton 3.4")


# The space, its rules and its model.


@pytest.mark.parametrize(
    "config, batch, key, word",
    [
        (
            LaunchConfig(STREAMED, 16, 32, 32, 4),
            1,
            replace(KEY, units=4240),
            "133 programs of a tile must run at once on 132",
        ),
        (LaunchConfig(PERSISTENT, 16, 64, 64, 4), 1, replace(KEY, units=1024), "bytes of weights per program"),
        (LaunchConfig(PERSISTENT, 64, 16, 64, 4), 16, KEY, "block_b=64 is twice the batch"),
        (LaunchConfig(STEPS, 16, 64, 64, 4), 1, replace(KEY, units=16), "block_h=64 is twice the units"),
        (LaunchConfig(PERSISTENT, 16, 16, 64, 8), 1, KEY, "num_warps=8 are more than two"),
        (LaunchConfig(PERSISTENT, 64, 64, 64, 2), 64, KEY, "sums per thread"),
        (LaunchConfig(PERSISTENT, 16, 32, 64, 4), 1, Key("forward", "float32", "ieee", 512), "compiled for minutes"),
        (LaunchConfig(SINGLE, 16, 64, 64, 4), 1, KEY, "does not hold units=256"),
    ],
)
def test_rules(config, batch, key, word):
    assert word in "; ".join(rules_against(config, Problem(key, batch), H100))
    assert not rules_against(CONFIG, Problem(KEY, 16), H100)


@pytest.mark.parametrize("target", MACHINES)
def test_nothing_is_modelled_below_the_floor(target):
    device = Device(100, 163 * 1024, target=target)
    for kernel in tables.KERNELS:
        for dtype, precision in (("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")):
            for units in (16, 128, 1024, 4096):
                for batch in (1, 64, 4096):
                    key = Key(kernel, dtype, precision, units)
                    able = [c for c in list_candidates(Problem(key, batch), device, MACHINES[target]) if not c.against]
                    assert able, "every problem has a candidate"
                    floor = step_floor(key, batch, device, MACHINES[target])
                    assert 0 < floor <= min(c.step.total for c in able)


def test_the_model_knows_what_costs():
    def total(config, key=KEY, batch=16):
        return model_step(config, key, batch, H100, MACHINE).total

    assert total(CONFIG, replace(KEY, units=1024)) > total(CONFIG)
    assert total(CONFIG, replace(KEY, kernel="backward")) > total(CONFIG)  # three gradients to load, one state
    assert total(CONFIG, replace(KEY, flags=("reset_before",))) > total(CONFIG)  # two exchanges
    assert total(CONFIG, replace(KEY, dtype="float32")) > total(CONFIG, replace(KEY, dtype="float32", precision="tf32"))
    assert total(LaunchConfig(STEPS, 16, 32, 32, 4)) > total(CONFIG)  # launches
    # Four warps over the rows of a square repeat each other's work; over the columns they share it.
    assert total(LaunchConfig(PERSISTENT, 16, 16, 128, 4)) > total(CONFIG)
    assert total(LaunchConfig(STEPS, 16, 32, 32, 4), batch=4096) > total(LaunchConfig(STEPS, 64, 32, 32, 4), batch=4096)


@pytest.mark.parametrize("batch", [1, 64, 512, 4096])
def test_the_order_of_candidates(batch):
    found = list_candidates(Problem(KEY, batch), H100, MACHINE)
    against = [bool(c.against) for c in found]
    assert against == sorted(against) and len({c.config for c in found}) == len(found)
    able = [c for c in found if not c.against]
    best = min(c.step.total for c in able)
    assert able[0].step.total <= (1 + MARGIN) * best
    rest = [round(c.step.total, 3) for c in able if c.step.total > (1 + MARGIN) * best]
    assert rest == sorted(rest)
    usual = configs.choose(256, batch, 2, H100)
    if any(c.config == usual and c.step.total <= (1 + MARGIN) * best for c in able):
        assert able[0].config == usual


# The search.


class FakeCompilers:
    """Refuses what `refuse` says, replays what `cycles` says; remembers what it was given."""

    def __init__(self, refuse=lambda job: False, stop_after=None, cycles=lambda job: 0.0):
        self.refuse, self.jobs, self.stop_after, self.cycles = refuse, [], stop_after, cycles

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, jobs):
        for job in jobs:
            if self.stop_after is not None and len(self.jobs) >= self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            wrong = ("spills 8",) if self.refuse(job) else ()
            yield job, Compiled(100, 8 if wrong else 0, 1000, "mma.sync", self.cycles(job), 64, 0.1, wrong)


def search(problems, compilers, depth):
    found, calls = open_problems(problems, H100, MACHINE), []
    compile_candidates(found, "sm_90", compilers, depth, lambda *call: calls.append(call))
    return found, calls


def test_everything_is_compiled_once():
    compilers = FakeCompilers()
    found, calls = search([Problem(KEY, 1), Problem(KEY, 16)], compilers, 0)
    assert len(set(compilers.jobs)) == len(compilers.jobs)
    assert not any(one.fault == NOT_COMPILED for problem in found for one in problem.tried)
    assert calls[-1][0] == calls[-1][1] == len(compilers.jobs)


def test_a_shallow_search_stops_at_the_first_that_may_run():
    first = next(c.config.num_warps for c in list_candidates(Problem(KEY, 1), H100, MACHINE))
    compilers = FakeCompilers(lambda job: job.config.num_warps == first)
    found, _ = search([Problem(KEY, 1)], compilers, 1)
    able = [one for one in found[0].tried if not one.candidate.against]
    expected = next(one for one in able if one.candidate.config.num_warps != first)
    assert found[0].winner is expected
    assert len(compilers.jobs) == able.index(expected) + 1
    assert "spills" in able[0].fault


def test_what_a_table_holds_is_compiled_however_shallow_the_search():
    """And for every batch, since the model's order may be wrong."""
    held = LaunchConfig(PERSISTENT, 16, 16, 64, 2)
    compilers = FakeCompilers(cycles=lambda job: 10.0 if job.config == held else 20.0)
    known = [Entry(KEY, (1, 16), held, 1.0, "p"), Entry(replace(KEY, units=512), (1, 16), CONFIG, 1.0, "p")]
    found = open_problems([Problem(KEY, 1), Problem(KEY, 64)], H100, MACHINE, known)
    compile_candidates(found, "sm_90", compilers, 1, lambda *_: None)
    assert [problem.winner.candidate.config for problem in found] == [held, held]
    assert len({job.config for job in compilers.jobs}) == len(compilers.jobs) <= 3


def test_no_winner_where_nothing_may_run():
    found, _ = search([Problem(KEY, 1)], FakeCompilers(lambda job: True), 1)
    assert found[0].winner is None and make_entries(found, IDS) == []


def test_neighbouring_batches_share_an_entry():
    found, _ = search([Problem(KEY, b) for b in (1, 2, 4, 8, 16, 4096)], FakeCompilers(), 1)
    assert [entry.batches for entry in make_entries(found, IDS)] == [(1, 16), (4096, 4096)]


def test_the_fewest_replayed_cycles_win():
    """Over the order of the model, and over what could not be replayed; turns of the multiprocessors count."""
    cycles = {2: 3000.0, 4: 2000.0, 8: 0.0}
    compilers = FakeCompilers(cycles=lambda job: cycles[job.config.num_warps] * job.config.block_h / 16)
    found, _ = search([Problem(KEY, 16), Problem(KEY, 4096)], compilers, 0)
    for problem in found:
        able = [one for one in problem.tried if not one.fault]
        winner = problem.winner
        assert winner.kind == tables.REPLAYED
        assert winner.microseconds == min(one.microseconds for one in able if one.kind == tables.REPLAYED)
        assert {one.kind for one in able} == {tables.REPLAYED, tables.MODELLED}
    few, many = (problem.winner for problem in found)
    assert few.microseconds == pytest.approx(2000 / 1755) and few.candidate.config.num_warps == 4
    assert many.microseconds > few.microseconds
    ids = {kind: kind for kind in tables.KINDS}
    assert {entry.provenance for entry in make_entries(found, ids)} == {tables.REPLAYED}


def test_the_fastest_wins_where_any_was_timed():
    found, _ = search([Problem(KEY, 1)], FakeCompilers(), 3)
    able = [one for one in found[0].tried if not one.fault]
    able[1].timing, able[2].timing = Timing((2e-3, 3e-3)), Timing((1e-3, 1e-3))
    assert found[0].winner is able[2]
    assert make_entries(found, IDS)[0].microseconds == pytest.approx(1.0)
    able[2].fault = "outputs: error 1 exceeds the tolerance 0.1"
    assert found[0].winner is able[1]


# Compiling in other processes.


@needs_compiler
def test_one_kernel_is_compiled_in_a_worker():
    job = Job("sm_90", Key("forward", "bfloat16", "ieee", 16), LaunchConfig(SINGLE, 16, 16, 16, 4))
    with Compilers(1) as compilers:
        ((got, compiled),) = compilers.run([job])
    assert got == job and compiled.wrong == () and compiled.matrix and compiled.registers > 16 and compiled.shared > 0
    assert 500 < compiled.cycles < 5000 and compiled.cache_bytes > 16 * 16 * 2 * 4


@needs_compiler
def test_what_the_replay_knows_of_plain_kernels():
    """Chunks of streamed weights count each; asynchronous products cannot be followed, so the model ranks them."""

    def compiled(config, units=256, target="sm_90"):
        return tune_compile.compile_job(Job(target, replace(KEY, units=units), config))

    few, many = (compiled(LaunchConfig(STREAMED, 16, 32, 64, 4), units) for units in (256, 1024))
    assert 9 < (many.cache_bytes - few.cache_bytes) / (12 * (3 * 32 + 16) * 64 * 2) * 10 < 11
    assert many.cycles > 1.5 * few.cycles
    assert compiled(LaunchConfig(PERSISTENT, 16, 32, 128, 4)).cycles > 1000
    warpgroups = compiled(LaunchConfig(STREAMED, 64, 32, 32, 4))
    assert (warpgroups.matrix, warpgroups.cycles) == ("wgmma.mma_async", 0)


def test_a_worker_that_takes_too_long_is_ended():
    jobs = [Job("sm_90", replace(KEY, units=u), CONFIG) for u in (256, 512, 1024)]
    with Compilers(2, seconds=0.05) as compilers:
        results = list(compilers.run(jobs))
        assert sorted(job.key.units for job, _ in results) == [256, 512, 1024]
        assert all(compiled.wrong == ("not compiled within 0.05 s",) for _, compiled in results)
        assert not compilers._running


def test_a_worker_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(tune_compile.sys, "executable", "/bin/false")
    with Compilers(1) as compilers:
        ((_, compiled),) = compilers.run([Job("sm_90", KEY, CONFIG)])
    assert "the compiler ended with status 1" in compiled.wrong[0]


@needs_triton
def test_what_the_compiler_raises_is_a_verdict():
    compiled = tune_compile.compile_job(Job("sm_1", KEY, CONFIG))
    assert compiled.wrong[0].startswith("ValueError: `target` must be one of")


# Files when things go wrong.


def entries(*units: int) -> list[Entry]:
    return [Entry(replace(KEY, units=u), (1, 16), CONFIG, 1.0, "p", 1000, 100) for u in units]


def save(path: Path, *units: int) -> None:
    tune_store.save_entries(path, H100, PROVENANCES, entries(*units))


def units_in(path: Path) -> list[int]:
    table = table_files.read(path)
    assert not table.problems
    return sorted(entry.key.units for entry in table.entries)


def in_a_process(target, *args) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def _save_many(path, first, barrier):
    barrier.wait()
    for u in range(first, first + 8):
        save(path, u)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_concurrent_writers_lose_nothing(tmp_path):
    path, barrier = tmp_path / "t.json", multiprocessing.get_context("fork").Barrier(4)
    processes = [in_a_process(_save_many, path, first, barrier) for first in (100, 200, 300, 400)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert units_in(path) == [first + k for first in (100, 200, 300, 400) for k in range(8)]
    assert not list(tmp_path.glob("*.damaged*"))


def _die_before_the_file_is_replaced(path):
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save(path, 512)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_writer_killed_before_the_last_moment_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.json"
    save(path, 256)
    process = in_a_process(_die_before_the_file_is_replaced, path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert units_in(path) == [256]
    save(path, 1024)  # the lock went with its holder
    assert units_in(path) == [256, 1024]


def _save_on_a_full_disk(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # writes beyond fail as on a full disk
    try:
        save(path, *range(512, 600))
    except OSError as error:
        os._exit(
            7 if error.errno == errno.EFBIG and str(path) in str(error) and "cannot be written" in str(error) else 8
        )
    os._exit(9)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.json"
    save(path, 256)
    process = in_a_process(_save_on_a_full_disk, path)
    process.join(60)
    assert process.exitcode == 7
    assert units_in(path) == [256]
    assert not list(tmp_path.glob(".*tmp"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the tuning table cannot be written.*t.json"):
        save(tmp_path / "file" / "t.json", 256)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="the tuning table cannot be written.*t.json"):
        save(tmp_path / "t.json", 256)
    tmp_path.chmod(0o700)


def test_the_sweep_does_not_begin_where_it_cannot_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune_module, "Compilers", lambda *_: pytest.fail("compiled"))
    (tmp_path / "file").write_text("")
    assert main(["tune", "--target", "sm_90", "--units", "64", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"format": 1, "device": {}, "provenances": {}, "entries": [3]}'])
def test_a_damaged_table_is_set_aside_not_overwritten(tmp_path, content):
    path = tmp_path / "t.json"
    for count in range(2):
        path.write_text(content)
        with pytest.warns(RuntimeWarning, match="t.json.*was kept as"):
            save(path, 256)
        assert units_in(path) == [256]
        assert (tmp_path / f"t.json.damaged{count or ''}").read_text() == content


def test_entries_of_other_runs_stay(tmp_path):
    path = tmp_path / "t.json"
    save(path, 256)
    measured = {"q": RECORD | {"kind": "measured"}, "not used": RECORD}
    tune_store.save_entries(path, H100, measured, [])
    other = replace(entries(512)[0], provenance="q")
    tune_store.save_entries(path, H100, measured, [other])
    assert units_in(path) == [256, 512] and set(table_files.read(path).provenances) == {"p", "q"}


# The sweep as a whole.


@needs_triton
def test_an_interrupt_keeps_what_was_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(tune_module, "Compilers", lambda *_: FakeCompilers(stop_after=3))
    result = tune([256, 512], [16], target="sm_90", out=tmp_path, depth=1)
    assert result.interrupted
    assert units_in(result.table) == [256, 256, 512]
    with open(result.rows) as file:
        rows = list(csv.DictReader(file))
    assert [row["wins"] for row in rows] == ["1"] * 3 and {row["kind"] for row in rows} == {"modelled"}
    options = ["--units", "256", "--batch", "16", "--depth", "1", "--kernels", "forward"]
    monkeypatch.setattr(tune_module, "Compilers", lambda *_: FakeCompilers(stop_after=0))
    assert main(["tune", "--target", "sm_90", *options, "--out", str(tmp_path)]) == 130
    assert "what was found until then is kept" in capsys.readouterr().out
    assert units_in(result.table) == [256, 256, 512]


@needs_triton
def test_a_swept_table_can_be_shipped(tmp_path, monkeypatch):
    """What the tool writes is what a choice reads."""
    monkeypatch.setattr(tune_module, "Compilers", lambda *_: FakeCompilers(lambda job: job.config.block_h == 16))
    result = tune([512], [1, 128], target="sm_90", out=tmp_path)
    monkeypatch.setattr(choices, "SHIPPED", tmp_path)
    monkeypatch.setenv("TRITONGRU_CACHE", str(tmp_path / "none"))
    choices.forget()
    choice = choices.choose(Key("forward", "bfloat16", "ieee", 512), 100, Device(132, 227 * 1024, target="sm_90"))
    choices.forget()
    assert result.table.name == "sm_90-132.json" and choice.source == "shipped" and choice.config.block_h == 32
    with open(result.rows) as file:
        rows = list(csv.DictReader(file))
    assert {row["verdict"] for row in rows} >= {"ok", "spills 8"}
    assert any("sums per thread" in row["verdict"] for row in rows)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"dtype": "float64"}, "`dtype`.*'float64'"),
        ({"units": [0]}, "`units`.*0"),
        ({"batch": [1.5]}, "`batch`.*1.5"),
        ({"flags": [["x"]]}, "`flags`.*'x'"),
        ({"kernels": ["up"]}, "`kernels`.*'up'"),
        ({"precision": ["exact"]}, "`precision`.*'exact'"),
        ({"target": "sm_1"}, "`target`.*'sm_1'"),
    ],
    ids=str,
)
@needs_triton
def test_bad_arguments(change, word, tmp_path):
    arguments = {"target": "sm_90", "out": tmp_path} | change
    with pytest.raises((ValueError, KeyError), match=word):
        tune(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_a_target_is_asked_for():
    with pytest.raises(RuntimeError, match="no GPU here: give `target`"):
        tune([64])


def test_problems():
    found = list(list_problems([64], [1, 3, 4], ["float32", "bfloat16"], ("ieee", "tf32"), ["forward"], [["masked"]]))
    assert [str(problem) for problem in found[:2]] == [
        "forward float32 ieee U=64 B=1 masked",
        "forward float32 ieee U=64 B=4 masked",
    ]
    assert len(found) == 6  # two buckets; bfloat16 has one way to multiply


@needs_triton
def test_workloads_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune_module, "Compilers", lambda *_: FakeCompilers())
    path = tmp_path / "w.json"
    path.write_text(json.dumps([{"name": "speech", "units": 256, "batch": 16, "dtype": "bfloat16"}]))
    assert main(["tune", "--workloads", str(path), "--target", "sm_90", "--depth", "1", "--out", str(tmp_path)]) == 0
    assert "workload speech" in capsys.readouterr().out
    for content, word in (("{", "not JSON"), ("{}", "expected a list"), ('[{"name": 1}]', "lacks batch, dtype, units")):
        path.write_text(content)
        assert main(["tune", "--workloads", str(path), "--target", "sm_90", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert word in error and str(path) in error


# The way of a GPU.


@pytest.mark.parametrize("kernel", tables.KERNELS)
@pytest.mark.parametrize("flags", [(), ("dropout",), ("masked",), ("reset_before",), tables.FLAGS], ids="-".join)
def test_the_inputs_of_a_timed_scan_are_those_of_the_scan(kernel, flags):
    """`continuation` takes the same arguments as the kernels, less the precision."""
    from tritongru.backends.eager import continuation

    key = Key(kernel, "float32", "ieee", 5, flags)
    arguments = tune_measure.make_scan(key, 3, 4, torch.device("cpu"), 0)
    results = getattr(continuation, f"scan_{kernel}")(*arguments[:-1])
    assert all(torch.isfinite(result).all() for result in results)
    assert not torch.equal(arguments[0], tune_measure.make_scan(key, 3, 4, torch.device("cpu"), 1)[0])


@needs_triton
def test_a_wrong_candidate_does_not_win(monkeypatch):
    """Right on the eager scan in place of the kernels; then one gradient is off by one part in a hundred."""
    run = checking.run_case

    def right(arguments, backend, seed):
        return run(arguments, "eager" if backend == "triton" else backend, seed)

    def wrong(arguments, backend, seed):
        results = right(arguments, backend, seed)
        return results | {"d kernel": results["d kernel"] * 1.01}

    monkeypatch.setattr(checking, "is_interpreted", lambda: True)
    problems = [Problem(Key(kernel, "float32", "ieee", 9), 4) for kernel in ("forward", "backward")]
    monkeypatch.setattr(checking, "run_case", right)
    assert [checking.check_config(problem, CONFIG) for problem in problems] == ["", ""]
    monkeypatch.setattr(checking, "run_case", wrong)
    assert checking.check_config(problems[0], CONFIG) == ""
    assert "d kernel: error" in checking.check_config(problems[1], CONFIG)


def test_only_what_is_right_is_timed_and_the_fastest_wins(monkeypatch):
    timed = []

    class FakeTimer:
        def __init__(self, problem, rehearse):
            pass

        def time(self, config, seconds):
            timed.append(config)
            return Timing((config.block_h * 1e-3,))

    monkeypatch.setattr(tune_measure, "Timer", FakeTimer)
    problems = [Problem(KEY, 1), Problem(replace(KEY, units=512), 64)]
    found, kept = open_problems(problems, H100, MACHINE), []
    compilers = FakeCompilers(lambda job: job.config.block_h == 16)
    tune_measure.measure_candidates(found, False, compilers, 6, 0.1, 60.0, lambda *_: None, lambda: kept.append(1))
    assert len(compilers.jobs) == 12 and {job.batch for job in compilers.jobs} == {1, 64}
    assert compilers.jobs[0].key != compilers.jobs[1].key  # every problem's first candidate before any second
    assert timed and all(config.block_h != 16 for config in timed) and len(kept) == 2
    for problem in found:
        able = [one for one in problem.tried if one.timing]
        assert problem.winner.microseconds == min(one.microseconds for one in able)


def test_the_budget_is_kept(monkeypatch):
    """Checking stops at half of the budget; what was not checked is not timed and cannot win."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(tune_measure.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tune_measure, "Timer", lambda *_: pytest.fail("timed"))
    found = open_problems([Problem(KEY, 1)], H100, MACHINE)
    compilers = FakeCompilers(lambda job: True)
    tune_measure.measure_candidates(found, False, compilers, 50, 0.1, 60.0, lambda *_: None, lambda: None)
    assert 2 <= len(compilers.jobs) <= 5 and found[0].winner is None


def test_a_worker_whose_device_is_lost_takes_no_more_jobs():
    assert tune_compile.is_lost("AcceleratorError: CUDA error: an illegal memory access was encountered")
    assert not tune_compile.is_lost("OutOfResources: out of resource: shared memory")


@needs_triton
@pytest.mark.slow
def test_a_rehearsal_goes_the_whole_way(tmp_path):
    """In a process of its own: Triton settles on its interpreter when it is imported."""
    command = [sys.executable, "-m", "tritongru", "tune", "--rehearse", "--units", "16", "--batch", "1", "--depth", "1"]
    command += ["--seconds", "0.01", "--jobs", "1", "--dtype", "float32", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if reasons := reasons_against_interpreter():
        assert done.returncode and reasons[0] in done.stdout + done.stderr
        pytest.skip(reasons[0])
    assert done.returncode == 0, done.stderr
    table = table_files.read(tmp_path / "interpreter-1.json")
    assert sorted(entry.key.kernel for entry in table.entries) == ["backward", "forward"]
    assert {record["kind"] for record in table.provenances.values()} == {"measured"}
    assert sorted(race.key for race in table.races) == [("float32", "ieee", 16, False), ("float32", "ieee", 16, True)]


# Reading the results.


@needs_triton
def test_plots(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(tune_module, "Compilers", lambda *_: FakeCompilers())
    result = tune([64, 256, 1024], [1, 64], target="sm_90", out=tmp_path, depth=1)
    capsys.readouterr()
    assert main(["tune", "--plot", str(result.rows)]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(paths) == 3 and all(path.read_text().startswith("<?xml") for path in paths)
    broken = tmp_path / "broken.csv"
    broken.write_text("a,b\n1,2\n")
    assert main(["tune", "--plot", str(broken)]) == 2
    assert f"tune: {broken}: line 2" in capsys.readouterr().err


@needs_compiler
def test_verify_finds_what_a_table_hides(tmp_path, capsys):
    """An entry that compiles, and one whose programs do not fit the device."""
    good = Entry(
        Key("forward", "bfloat16", "ieee", 64), (1, 16), LaunchConfig(SINGLE, 16, 64, 64, 4), 1.0, "p", 1 << 17
    )
    crowd = Entry(replace(KEY, units=4240), (1, 16), LaunchConfig(STREAMED, 16, 32, 32, 4), 1.0, "p", 1 << 17)
    path = tmp_path / "sm_90-132.json"
    tune_store.save_entries(path, H100, PROVENANCES, [good, crowd])
    assert main(["tune", "--verify", str(path), "--jobs", "1"]) == 1
    shown = capsys.readouterr().out
    assert "2 entries, 1 broken" in shown and "133 programs of a tile" in shown
    assert main(["tune", "--verify", str(path), "--repair", "--jobs", "1"]) == 1
    (kept,) = table_files.read(path).entries
    assert kept.config == good.config and 0 < kept.shared < good.shared and kept.registers
    assert main(["tune", "--verify", str(path), "--jobs", "1"]) == 0


def test_info_says_which_tables_are_asked(tmp_path, monkeypatch):
    from tritongru.tools.info import describe_tables

    monkeypatch.setenv("TRITONGRU_CACHE", str(tmp_path))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path)
    choices.forget()
    assert describe_tables(H100) == "a formula of the device (tritongru.tuning.configs)"
    save(tmp_path / "test-gpu.json", 256)
    save(tmp_path / "sm_90-132.json", 256, 512)
    choices.forget()
    words = describe_tables(H100)
    choices.forget()
    assert "user's" in words and "shipped" in words and "2 entries, modelled 2026-01-02; then a formula" in words


def test_the_fingerprint_of_the_kernels_is_in_the_provenance():
    name, record = tune_store.make_provenance("modelled", H100)
    assert len(record["kernels"]) == 12 and record["kernels"] == tune_store.fingerprint_kernels()
    assert name == f"modelled-{record['date']}-{record['kernels']}" and record["device"] == "Test GPU"
