"""The benchmark: contenders that compute the same thing, its table of results, the memory it counts."""

from __future__ import annotations

import csv
import importlib.util
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tritongru import dispatch, environment
from tritongru.__main__ import main
from tritongru.tools.benchmark import bench, contenders, floor, front, memory, report, results, workloads
from tritongru.tools.benchmark.bench import BUILDERS, PEERS, build, has_failed
from tritongru.tools.benchmark.contenders import FORWARD, INFERENCE, TRAINING, UnavailableError, make_call
from tritongru.tools.benchmark.work import Work
from tritongru.tools.benchmark.workloads import TINY, Workload, with_features
from tritongru.tuning.configs import Device

CPU = torch.device("cpu")
OWN = tuple(name for name in BUILDERS if name not in PEERS and not name.startswith("triton"))
PLAIN = Workload("plain", 4, 3, 2, 5)
VARIANTS = (PLAIN, *with_features(4, 3, 2, 5), TINY[1])


@pytest.mark.parametrize("workload", VARIANTS, ids=lambda w: w.name)
def test_contenders_give_the_same_outputs_and_gradients(workload):
    work = Work(workload, "float64")
    built, missing = build(work, OWN)
    assert {"auto", "auto-recompute", "eager", "reference", "loop"} <= set(built)
    assert ("nn.GRU" in built) == (workload.features in ("", "lengths"))
    assert not any(reason.startswith(bench.FAILED) for reason in missing.values())
    right = make_call(built["reference"], work, TRAINING)(1)
    for name, contender in built.items():
        if name == "nn.GRU" and workload.lengths:
            continue  # it runs over the padding
        if workload.lengths:  # what stands in the padding is each contender's own affair
            work.inputs[1].cotangent.mul_(work.inputs[1].mask[..., None])
            right = make_call(built["reference"], work, TRAINING)(1)
        torch.testing.assert_close(make_call(contender, work, TRAINING)(1), right)


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras 3 is not installed")
@pytest.mark.parametrize("workload", [PLAIN, VARIANTS[1], VARIANTS[4]], ids=lambda w: w.name)
def test_keras_computes_the_same(workload):
    built, missing = build(Work(workload, "float32"), ["keras"])
    if "backend" in missing.get("keras", ""):
        pytest.skip(missing["keras"])
    assert set(built) == {"keras"}, missing
    make_call(built["keras"], Work(workload, "float32"), TRAINING)(0)


def test_what_auto_is_depends_on_the_direction(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(environment, "second_cache", lambda: 1 << 20)  # with a larger one it does not
    dispatch.forget()
    rows = bench.bench([replace(PLAIN, time=1, batch=64, units=512)], backends=["auto"], seconds=0)
    assert {row.direction: row.notes for row in rows} == {INFERENCE: "is numba here", TRAINING: "is aten here"}
    dispatch.forget()


def test_a_contender_with_wrong_numbers_is_not_timed(monkeypatch):
    monkeypatch.setitem(BUILDERS, "loop", lambda work: replace(contenders.loop(work), forward=lambda n, x: x * 9))
    rows = bench.bench([replace(PLAIN, input_size=5)], backends=["loop", "eager"], seconds=0)
    assert [row.p50_ms is None for row in rows if row.backend == "loop"] == [True, True]
    assert has_failed(rows) and "from the reference" in next(r.notes for r in rows if r.backend == "loop")


def test_what_cannot_run_says_why():
    rows = bench.bench([VARIANTS[2]], backends=["nn.GRU", "aten", "haste", "eager"], seconds=0)
    notes = {row.backend: row.notes for row in rows}
    assert "recurrent_dropout" in notes["nn.GRU"] and "recurrent_dropout" in notes["aten"]
    assert "cuda" in notes["haste"]
    assert not has_failed(rows)


def test_rows_hold_their_conditions():
    (row, base) = bench.bench([PLAIN], directions=[TRAINING], backends=["eager", "nn.GRU"], seconds=0, memory=True)
    assert (row.T, row.B, row.I, row.U, row.backend) == (4, 3, 2, 5, "eager")
    assert row.torch == torch.__version__ and row.date.count("-") == 2 and row.device
    assert row.p20_ms <= row.p50_ms <= row.p80_ms and row.samples >= 3
    assert row.us_per_step == pytest.approx(row.p50_ms * 250)
    assert base.ratio_to_nn_gru == 1 and row.ratio_to_nn_gru > 0
    assert row.saved_bytes > 0 and row.peak_bytes is None


@pytest.mark.parametrize("bad", [dict(dtypes=["int8"]), dict(directions=["up"]), dict(backends=["fast"])], ids=str)
def test_unknown_names_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        bench.bench([PLAIN], **bad)


def test_a_spent_budget_begins_no_cell():
    assert bench.bench([PLAIN], backends=["eager"], budget=-1) == []


def test_sets_are_what_they_say():
    sizes = {(w.time, w.batch, w.input_size, w.units) for w in workloads.SETS["cpu"]}
    assert sizes == {
        (100, 32, 64, 128),
        (200, 64, 256, 256),
        (50, 16, 512, 512),
        (128, 1, 128, 256),
        (500, 64, 64, 64),
        (1000, 1, 40, 64),
        (16, 1, 64, 128),
    }
    assert {(w.time, w.batch, w.units) for w in workloads.SETS["small"]} == {
        (T, B, U) for T in (1, 8, 16) for B in (1, 16) for U in (64, 128, 256)
    }
    grid = workloads.SETS["gpu-grid"]
    assert {(w.units, w.batch) for w in grid} == {
        (U, B) for U in (256, 512, 768, 1024, 2048) for B in (1, 8, 16, 64, 128)
    }
    assert len(grid) == 25 and {w.time for w in grid} == {512}
    with pytest.raises(ValueError, match="nonsense"):
        workloads.select(["nonsense"])


def row(**changes) -> results.Result:
    same = results.conditions(CPU) | dict(workload="w", features="", T=1, B=16, I=3, U=4, dtype="float32")
    return results.Result(**(same | dict(direction=TRAINING, backend="eager") | changes))


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "bench.csv"
    rows = [row(p50_ms=1.5, notes='a, "b"\nc'), row(backend="aten", samples=3, saved_bytes=12)]
    results.append_results(path, rows[:1])
    results.append_results(path, rows[1:])
    assert results.read_results(path) == rows


def test_a_damaged_table_is_named_and_left(tmp_path):
    path = tmp_path / "bench.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="bench.csv"):
        results.append_results(path, [row()])
    assert path.read_text() == "a,b\n1,2\n"
    path.write_bytes(b"PK\x80")
    for use in (results.read_results, lambda path: results.append_results(path, [row()])):
        with pytest.raises(ValueError, match="bench.csv: not a table of the benchmark"):
            use(path)
    assert path.read_bytes() == b"PK\x80"
    path.unlink()
    results.append_results(path, [row()])
    path.write_text(path.read_text() + "torn,lin")
    with pytest.raises(ValueError, match=r"bench\.csv, line 3"):
        results.read_results(path)


def _append_many(path: str, name: str) -> None:
    for number in range(20):
        results.append_results(path, [row(backend=name, samples=number)])


def test_two_writers_lose_nothing(tmp_path):
    path = str(tmp_path / "bench.csv")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    rows = results.read_results(path)
    assert sorted((r.backend, r.samples) for r in rows) == [(name, n) for name in "ab" for n in range(20)]


def test_wrong_options_and_files_are_named_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "bench", lambda *a, **k: pytest.fail("ran"))
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("a,b\n")
    for options, named in (
        (["nonsense"], "nonsense"),
        (["--sizes", "1,2,0,4"], "1,2,0,4"),
        (["tiny", "--csv", str(foreign)], "foreign.csv"),
    ):
        assert main(["bench", "--csv", str(tmp_path / "b.csv"), *options]) == 2
        assert named in capsys.readouterr().err
    assert foreign.read_text() == "a,b\n"


def test_an_interrupted_run_keeps_its_rows(tmp_path, capsys, monkeypatch):
    right = bench.run_cell

    def cut(work, direction, *rest):
        if direction == TRAINING:
            raise KeyboardInterrupt
        return right(work, direction, *rest)

    monkeypatch.setattr(bench, "run_cell", cut)
    path = tmp_path / "b.csv"
    assert main(["bench", "tiny", "--backends", "eager", "--seconds", "0", "--csv", str(path)]) == 130
    assert len(results.read_results(path)) == 1 and "interrupted" in capsys.readouterr().out


def test_the_command_line(tmp_path, capsys):
    path = tmp_path / "b.csv"
    sizes = ["bench", "--sizes", "3,2,1,4", "--backends", "eager", "--seconds", "0", "--csv", str(path)]
    assert main(sizes) == 0 and {r.U for r in results.read_results(path)} == {4}
    path.unlink()
    assert main(["bench", "tiny", "--backends", "eager", "nn.GRU", "--seconds", "0", "--csv", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "nn.GRU has no" in printed and "8 rows added" in printed
    assert len(results.read_results(path)) == 8


@pytest.mark.parametrize("workload", VARIANTS, ids=lambda w: w.name)
@pytest.mark.parametrize("recompute", [False, True], ids=["save", "recompute"])
def test_saved_bytes_are_what_the_formula_says(workload, recompute):
    work = Work(workload, "float32")
    contender = contenders.own(work, "eager", recompute=recompute)
    parts = memory.kept_bytes(workload, "float32", recompute, "eager")
    assert (parts["gates"] == 0) == recompute
    assert memory.saved_bytes(make_call(contender, work, FORWARD)) == sum(parts.values())


@pytest.mark.parametrize("size", [(4, 3, 2, 5), (9, 1, 7, 3)], ids=str)
def test_saved_bytes_of_torch_are_what_the_formula_says(size):
    workload = Workload("w", *size)
    work = Work(workload, "float32")
    measured = memory.saved_bytes(make_call(contenders.torch_gru(work), work, FORWARD))
    assert measured == memory.kept_bytes_of_torch(workload, "float32")


def test_recompute_keeps_the_input_the_states_and_the_weights_alone():
    work = Work(PLAIN, "float32")
    call = make_call(contenders.own(work, "eager", recompute=True), work, FORWARD)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        call(0)
    x, hs, h0, w, u, bias, none = (4, 3, 2), (4, 3, 5), (3, 5), (2, 15), (5, 15), (15,), (0,)
    assert sorted(shapes) == sorted([x, hs, h0, w, u, bias, bias, none, none])


def test_schedules_are_configured_for_the_device():
    h100 = Device(processors=132, shared_memory=232448)
    single = contenders.config_for("single", 64, 16, 2, h100, False)
    assert single.schedule == "single" and single.block_h >= 64
    for units in (64, 256, 1024):
        for schedule in ("persistent", "streamed", "steps"):
            assert contenders.config_for(schedule, units, 16, 2, h100, False).schedule == schedule
    with pytest.raises(UnavailableError, match="units=512"):
        contenders.config_for("single", 512, 16, 2, h100, False)
    with pytest.raises(UnavailableError, match="units=8192"):
        contenders.config_for("persistent", 8192, 16, 2, h100, False)


def test_the_floor_grows_with_the_work():
    speeds = floor.Speeds(132, 1.755e9, {"bfloat16": 4096, "float32": 256})
    small, large = (floor.step_floor(1024, batch, "bfloat16", False, speeds) for batch in (1, 512))
    assert small == pytest.approx(3 * 1024**2 * 2 / (132 * 128 * 1755), rel=1e-6)  # the weights' feed
    assert large == pytest.approx(6 * 1024**2 * 512 / (132 * 4096 * 1755), rel=1e-6)  # the product
    assert floor.step_floor(1024, 1, "bfloat16", True, speeds) == pytest.approx(3 * small)
    assert floor.step_floor(8, 1, "float16", False, speeds) is None


def test_the_floor_on_a_cpu_is_that_of_the_products(monkeypatch):
    monkeypatch.setattr(floor, "product_rate", lambda threads, dtype: 1e9)
    for training, times in ((False, 6), (True, 18)):
        found = floor.cpu_step_floor(8, 4, 5, torch.float32, training)
        assert found == pytest.approx(times * 8 * 13 * 4 / 1e9 * 1e6)
    monkeypatch.undo()
    before = torch.get_num_threads()
    assert 1e8 < floor.product_rate(1, torch.float32) < 1e14 and torch.get_num_threads() == before


ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_the_gpu_commands_say_that_there_is_no_gpu(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "grid", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no GPU" in done.stdout, done.stderr


def test_the_committed_page_is_what_the_tables_say():
    assert (ROOT / report.PAGE).read_text(encoding="utf-8") == report.render(ROOT)


def test_the_page_about_cpus_says_what_was_tried():
    """docs/cpu.md has the microseconds of numba and the quotients of the others from bench/results/cpu_tried.csv."""
    with (ROOT / report.RESULTS / "cpu_tried.csv").open(encoding="utf-8", newline="") as file:
        tried = {
            (", ".join(row[n] for n in "TBIU"), row["direction"], row["route"]): row for row in csv.DictReader(file)
        }
    lines = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| T, B, I, U | direction |"))
    routes, shown = lines[start].strip("| ").split(" | ")[3:], 0
    for line in lines[start + 2 : start + 8]:
        sizes, direction, numba_us, *quotients = [cell.strip() for cell in line.strip().strip("|").split("|")]
        assert float(numba_us) == float(tried[sizes, direction, "numba"]["us_per_step"])
        for route, quotient in zip(routes, quotients, strict=True):
            found = tried.get((sizes, direction, route))
            assert (float(found["over_numba"]) if found else "") == (float(quotient) if quotient else "")
            shown += bool(quotient)
    assert shown == len(tried) - 6


def made_tables(root: Path) -> None:
    """Two runs of one cell and a GPU row, with the page's notes."""
    (root / "docs").mkdir()
    (root / report.NOTES).write_text("By hand.\n")
    base = dict(workload="cpu", p20_ms=1.0, p80_ms=9.0, samples=3, us_per_step=2.0, direction=TRAINING)
    rows = [
        row(**base, run="old", backend="nn.GRU", p50_ms=77.0, ratio_to_nn_gru=1.0),
        row(**base, run="old", backend="auto", p50_ms=7.0, ratio_to_nn_gru=11.0, notes="is eager here"),
        row(**base, run="new", backend="nn.GRU", p50_ms=4.0, ratio_to_nn_gru=1.0),
        row(**base, run="new", backend="auto", p50_ms=5.0, ratio_to_nn_gru=0.8, notes="is eager here"),
        row(**(base | dict(workload="gpu-grid", direction=FORWARD)), kind="cuda", device="A GPU", dtype="bfloat16",
            backend="auto", p50_ms=1.0, floor_us=0.5, peak_bytes=2**20, notes="is triton here"),
        row(**(base | dict(workload="resets")), features="resets", p50_ms=2.0, backend="auto"),
        row(**(base | dict(workload="resets")), features="resets", p50_ms=9.0, backend="reference"),
        row(**(base | dict(workload="cpu")), run="newer", device="Another", backend="auto", p50_ms=1.0,
            ratio_to_nn_gru=0.1, date="2020-01-01"),
        row(**(base | dict(workload="cpu")), run="newer", device="Another", backend="nn.GRU", p50_ms=0.1,
            ratio_to_nn_gru=1.0, date="2020-01-01"),
        *(row(workload="small", direction=INFERENCE, backend=name, p50_ms=number / 1e3, ratio_to_nn_gru=4.0 / number,
              notes="is numba here") for name, number in (("nn.GRU", 4), ("compat.GRU", 2), ("nn.GRUCell", 8),
                                                          ("Stream.step", 6))),
    ]  # fmt: skip
    results.append_results(root / report.RESULTS / "bench.csv", rows)
    (root / report.RESULTS / "exchange.csv").write_text("method,ns\ncounter,12\n")


def test_the_page_shows_losses_the_last_run_and_every_table(tmp_path):
    made_tables(tmp_path)
    page = report.write_report(tmp_path).read_text()
    assert "By hand." in page and "77" not in page
    assert "below 1) in 1 of 1" in page and "| 0.80 |" in page
    # The goal of training on a CPU, on each device in turn; four times the reference; small calls.
    assert "| missed: mean 0.80, least 0.80, of 1 | missed: mean 0.10, least 0.10, of 1 |" in page
    assert "| met: mean 4.50, least 4.50, of 1 | not measured |" in page
    assert "| met: mean 2.00, least 2.00, of 1 |" in page and "| missed: mean 1.33, least 1.33, of 1 |" in page
    assert "| numba | 4.0 | 2.0 (0.50) |  | 8.0 | 6.0 (0.75) |" in page
    assert "### Another" in page
    assert "| counter | 12 |" in page
    assert "Nothing has been measured" not in page
    assert report.render(tmp_path) == page


def test_the_page_says_when_nothing_was_measured(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / report.NOTES).write_text("By hand.\n")
    page = report.render(tmp_path)
    assert "Nothing has been measured on a GPU so far." in page and "not measured" in page and "| met: " not in page


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    made_tables(tmp_path)
    table = tmp_path / report.RESULTS / "bench.csv"
    more = [row(workload="cpu", U=U, us_per_step=U / 9, p50_ms=1.0, backend="auto") for U in (8, 16)]
    results.append_results(table, more)
    assert main(["bench", "--csv", str(table), "--plots", str(tmp_path / "plots")]) == 0
    drawn = {path.name for path in (tmp_path / "plots").glob("*.svg")}
    assert {
        "units-cpu-float32-forward-backward.svg",
        "ratio-cpu-float32-forward-backward.svg",
        "floor-cuda-bfloat16-forward.svg",
    } <= drawn


def test_the_front_picture_shows_the_newest_run_with_its_losses(tmp_path):
    pytest.importorskip("matplotlib")
    base = dict(workload="cpu", direction=TRAINING)
    older = row(**base, run="1", backend="auto", p50_ms=1.0, device="another device")
    newer = [
        row(**base, run="2", backend=name, p50_ms=ms) for name, ms in (("nn.GRU", 4.0), ("auto", 5.0), ("jax", 3.0))
    ]
    (path,) = front.draw_front([older, *newer], tmp_path / "front.svg")
    text = path.read_text()
    assert all(f"<!-- {word} -->" in text for word in ("nn.GRU", "tritongru", "JAX", "training"))
    assert "another device" not in text and "onnxruntime" not in text
    assert not front.draw_front([newer[1]], tmp_path / "nothing.svg") and not (tmp_path / "nothing.svg").exists()
