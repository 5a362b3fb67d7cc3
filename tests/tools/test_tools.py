"""The command line, info, compare and its tolerance, the demo and its data."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tritongru
from tritongru.__main__ import main
from tritongru.environment import reasons_against_interpreter
from tritongru.tools import demo, show
from tritongru.tools.oracle import compare as compare_module
from tritongru.tools.oracle.cases import Case, make_arguments
from tritongru.tools.oracle.compare import compare_backend, has_failed
from tritongru.tools.oracle.tolerance import check, largest_error, machine_epsilon, tolerance

HAS_TRITON = importlib.util.find_spec("triton") is not None
CPU = torch.device("cpu")


def test_info_names_everything() -> None:
    facts = tritongru.info()
    assert set(facts) == {"tritongru", "python", "torch", "triton", "device", "kernels", "tuning"}
    assert facts["torch"] == torch.__version__
    assert all(name in str(facts) for name in facts)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        dict(mask=True, resets=True, reset_state="steps", zero_output_for_mask=True),
        dict(reset_after=False, layout="torch", go_backwards=True, recurrent_dropouts=3),
        dict(dtype=torch.bfloat16, lengths=True, time_major=True),
    ],
    ids=str,
)
def test_compare_passes(flags: dict) -> None:
    rows = tritongru.compare(backends=["aten", "eager", "reference"], **flags)
    assert not has_failed(rows)
    for backend in ("eager", "reference"):
        quantities = {row.quantity for row in rows if row.backend == backend and row.verdict == "ok"}
        assert {"outputs", "state", "d x", "d kernel", "d recurrent_kernel", "d initial_state"} <= quantities


def test_compare_gives_the_reason_a_backend_did_not_run() -> None:
    (row,) = tritongru.compare(backends=["aten"], mask=True)
    assert row.verdict == "not run" and "mask" in row.note


def test_compare_finds_a_wrong_gradient(monkeypatch) -> None:
    right = compare_module.run_case

    def wrong(arguments, backend, seed=0):
        results = right(arguments, backend, seed)
        if backend == "eager":
            results["d kernel"] = results["d kernel"] * (1 + 1e-4)
        return results

    monkeypatch.setattr(compare_module, "run_case", wrong)
    rows = compare_backend(Case(), "eager", CPU)
    assert [row.quantity for row in rows if row.verdict == "FAIL"] == ["d kernel"]
    assert main(["compare", "--backends", "eager"]) == 1


def test_compare_finds_nan(monkeypatch) -> None:
    right = compare_module.run_case

    def broken(arguments, backend, seed=0):
        results = right(arguments, backend, seed)
        if backend == "eager":
            results["state"] = results["state"].fill_diagonal_(float("nan"))
        return results

    monkeypatch.setattr(compare_module, "run_case", broken)
    assert has_failed(compare_backend(Case(), "eager", CPU))


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run compiled here")
def test_compare_runs_the_kernels_interpreted() -> None:
    if reasons := reasons_against_interpreter():
        (row,) = tritongru.compare(batch=2, time=3, units=5, input_size=3, mask=True, backends=["triton"])
        assert row.verdict == "not run" and row.note == "; ".join(reasons)
        pytest.skip(row.note)
    rows = tritongru.compare(batch=2, time=3, units=5, input_size=3, mask=True, backends=["triton"])
    assert {row.verdict for row in rows} == {"ok"}, rows
    assert {row.note for row in rows} == {"interpreted"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run compiled here")
def test_compare_interpreted_reports_a_timeout() -> None:
    (row,) = tritongru.compare(backends=["triton"], timeout=0.01)
    assert row.verdict == "FAIL" and "0.01 s" in row.note


def test_compare_rejects_unknown_names() -> None:
    with pytest.raises(ValueError, match="`dtype`.*'int8'"):
        tritongru.compare(dtype="int8")
    with pytest.raises(ValueError, match="`backends`.*'cudnn'"):
        tritongru.compare(backends=["cudnn"])
    with pytest.raises(TypeError, match="masks"):
        tritongru.compare(masks=True)


def test_tolerance_rule() -> None:
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    oracle = truth.float() + torch.tensor([0.0, 1e-3])
    eps = torch.finfo(torch.float32).eps
    assert tolerance(oracle, truth, torch.float32) == pytest.approx(2e-3 + 8 * eps * 4, rel=1e-3)
    assert machine_epsilon(torch.float32, "tf32") == 2**-10
    assert machine_epsilon(torch.bfloat16, "tf32") == torch.finfo(torch.bfloat16).eps
    assert largest_error(torch.empty(0), torch.empty(0)) == 0
    check("exact", truth.float(), truth.float(), truth)
    with pytest.raises(AssertionError, match="state"):
        check("state", truth.float() * 1.01, truth.float(), truth)
    with pytest.raises(AssertionError, match="state"):
        check("state", truth.float() * float("nan"), truth.float(), truth)
    with pytest.raises(ValueError, match="shape"):
        largest_error(torch.zeros(2), torch.zeros(3))


def test_a_case_is_the_same_numbers_every_time() -> None:
    case = Case(mask=True, resets=True, reset_state="rows", recurrent_dropouts=3)
    first, second = make_arguments(case), make_arguments(case)
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]), name
    assert str(case) == "B3-T7-I5-U9-float32-mask-resets-reset_state=rows-recurrent_dropouts=3"


@pytest.mark.parametrize("command", ["info", "compare", "demo", "convert"])
def test_help(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert command in capsys.readouterr().out


def test_command_line(capsys) -> None:
    done = subprocess.run([sys.executable, "-m", "tritongru", "info"], capture_output=True, text=True, check=True)
    assert torch.__version__ in done.stdout
    assert main(["compare", "--backends", "eager", "--mask", "--no-reset-after"]) == 0
    printed = capsys.readouterr().out
    assert "d recurrent_kernel" in printed and "ok" in printed


def test_data_is_the_published_split() -> None:
    data, test = demo.load(CPU)
    assert data.x.shape == (270, 29, 12) and test.x.shape == (370, 29, 12)
    assert data.speaker.bincount().tolist() == [30] * 9
    assert test.speaker.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert int(data.mask.sum(1).min()) == 7 and int(data.mask.sum(1).max()) == 26
    assert int(test.mask.sum(1).max()) == 29
    assert not data.x[~data.mask].any()
    torch.testing.assert_close(data.x[data.mask].mean(0), torch.zeros(12), atol=1e-4, rtol=0)


def test_demo_learns_and_writes_its_figure(tmp_path: Path, capsys) -> None:
    picture = tmp_path / "deep" / "demo.png"
    assert main(["demo", "--seeds", "1", "--epochs", "12", "--no-compare", "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    accuracy = float(printed.split("test accuracy: ")[1].split(" %")[0])
    assert accuracy > 90
    assert "backend: " in printed and "94.1 %" in printed
    if importlib.util.find_spec("matplotlib"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in picture.parent.iterdir()] == ["demo.png"]


@pytest.mark.parametrize("place", ["file/demo.png", "file/deep/demo.png", "folder"])
def test_demo_says_before_it_trains_that_it_cannot_write(place: str, monkeypatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(demo, "train", lambda *_: pytest.fail("it trained"))
    assert main(["demo", "--output", str(tmp_path / place)]) == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1
    assert printed.err.startswith(f"demo: --output {tmp_path / place} cannot be written: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_demo_without_matplotlib(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    line = demo.save_figure([], torch.empty(0), tmp_path / "demo.png")
    assert "matplotlib is not installed" in line and not list(tmp_path.iterdir())


def test_plain_table(capsys, monkeypatch) -> None:
    monkeypatch.setattr(show, "has_rich", lambda: False)
    show.print_table(("name", "value"), [("a", 1), ("long name", 2)], title="title")
    assert capsys.readouterr().out.splitlines()[:3] == ["title", "name       value", "---------  -----"]


@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs rich")
def test_rich_table_and_progress(capsys, monkeypatch) -> None:
    monkeypatch.setattr(show, "has_rich", lambda: True)
    show.print_table(("name", "value"), [("d bias[0]", 1)])
    assert "d bias[0]" in capsys.readouterr().out
    with show.show_progress("training", 2) as advance:
        advance("one")
        advance("two")
