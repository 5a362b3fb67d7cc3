"""What judges the libraries of `make clients`: `clients/run.py`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

CLIENTS = Path(__file__).parents[2] / "clients"
spec = importlib.util.spec_from_file_location("clients_run", CLIENTS / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


def test_every_library_is_pinned():
    pins = {line.split("==")[0].replace("_", "-") for line in (CLIENTS / "constraints.txt").read_text().splitlines()}
    packages = {package.replace("_", "-") for package in run.libraries().values()}
    assert len(packages) == 6 and packages <= pins
    assert "torch" not in pins


def test_equal_and_different_results():
    y = np.linspace(0, 1, 6, dtype="float32").reshape(2, 3)
    theirs = {"a/y": y, "a/loss": np.ones(2), "b/y": y}
    assert run.compare("a", theirs, dict(theirs)) == (True, "equal to the bit")
    assert run.compare("a", theirs, theirs | {"a/y": y + 1e-6})[0]
    for other in ({"a/y": y + 1e-3}, {"a/y": y * np.nan}, {"a/y": y[:1]}, {"a/new": y}):
        same, words = run.compare("a", theirs, theirs | other)
        assert not same and words.startswith("DIFFERENT")
    assert not run.compare("a", theirs, {"b/y": y})[0]
    assert not run.compare("c", theirs, theirs)[0]


def test_a_failure_with_ours_alone_is_a_failure(monkeypatch, tmp_path):
    fine = {"what": "w", "seconds": 0.0, "error": ""}
    broken = fine | {"error": "TypeError: no"}
    y = {"a/y": np.ones(2), "b/y": np.ones(2)}
    results = {"torch": ({"a": fine, "b": fine}, y), "tritongru": ({"a": fine, "b": broken}, y)}
    monkeypatch.setattr(run, "run", lambda name, gru, folder: results[gru])
    rows, well = run.judge("numpy", "numpy", tmp_path)
    assert not well and [row[3] for row in rows] == ["equal to the bit", "FAILS: TypeError: no"]
    results["torch"] = ({"a": fine, "b": broken}, y)
    rows, well = run.judge("numpy", "numpy", tmp_path)
    assert well and rows[1][3].startswith("does not run with torch.nn.GRU either")
    assert run.judge("nothing", "no-such-package", tmp_path)[0][0][3] == "skipped: not installed"


def test_the_page_has_the_place_for_the_table(monkeypatch, tmp_path):
    page = tmp_path / "torch.md"
    page.write_text(run.PAGE.read_text())
    monkeypatch.setattr(run, "PAGE", page)
    for version in ("1", "2"):
        run.write_page([("library", version, "a thing", "equal")])
    assert page.read_text().count("| library |") == 2 and "| library | 2 | a thing | equal |" in page.read_text()
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has not the lines"):
        run.write_page([])
