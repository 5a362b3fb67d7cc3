"""Other runtimes and the layers in the benchmark: their numbers are those of the reference, and what lacks says why."""

import importlib
import importlib.util
import sys

import pytest
import torch

from tritongru.tools.benchmark import bench
from tritongru.tools.benchmark.bench import build
from tritongru.tools.benchmark.contenders import INFERENCE, TRAINING, UnavailableError, make_call
from tritongru.tools.benchmark.layers import LAYERS
from tritongru.tools.benchmark.runtimes import RUNTIMES
from tritongru.tools.benchmark.work import Work
from tritongru.tools.benchmark.workloads import Workload

PLAIN, STEP = Workload("plain", 12, 3, 5, 8), Workload("step", 1, 3, 5, 8)
LENGTHS = Workload("lengths", 12, 3, 5, 8, lengths=True)


def skip_without(name):
    """Skip where it is not installed. It is not imported: JAX is to be given its threads before that."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def any_number_of_threads(monkeypatch):
    """Numbers are compared and nothing is timed, so JAX may have been imported before, as Keras does."""
    monkeypatch.setenv("NPROC", str(torch.get_num_threads()))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("workload", [PLAIN, Workload("one row", 7, 1, 3, 20)], ids=lambda w: w.name)
def test_a_runtime_gives_the_numbers_of_the_reference(name, workload):
    for needed in (name,) if name == "jax" else (name, "onnx"):
        skip_without(needed)
    work = Work(workload, "float32")
    contender = RUNTIMES[name](work)
    for number in (2, 0, 1):  # each set of inputs, none left over from the call before
        outputs = make_call(contender, work, INFERENCE)(number)
        assert outputs.shape == (workload.time, workload.batch, workload.units)
        assert work.error(outputs, number) < 1e-5


def test_jax_trains_as_the_reference():
    skip_without("jax")
    work = Work(PLAIN, "float32")
    built, _ = build(work, ["jax", "reference"])
    for number in (1, 0):
        ours, right = (make_call(built[name], work, TRAINING)(number) for name in ("jax", "reference"))
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_is_not_there_says_so(name, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    for work in (Work(PLAIN, "float32"), Work(LENGTHS, "float32"), Work(PLAIN, "float64")):
        with pytest.raises(UnavailableError, match="cannot be imported|lengths|float64"):
            RUNTIMES[name](work)


def test_jax_is_not_timed_with_another_number_of_threads(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    monkeypatch.setenv("NPROC", str(torch.get_num_threads() + 1))
    with pytest.raises(UnavailableError, match="JAX was imported before, not with"):
        RUNTIMES["jax"](Work(PLAIN, "float32"))


def test_a_runtime_without_gradients_has_a_row_that_says_so():
    skip_without("onnxruntime")
    rows = bench.bench([PLAIN], directions=[INFERENCE, TRAINING], backends=["eager", "onnxruntime"], seconds=0)
    found = {row.direction: row for row in rows if row.backend == "onnxruntime"}
    assert found[INFERENCE].p50_ms > 0 and found[TRAINING].p50_ms is None
    assert "inference alone" in found[TRAINING].notes and not bench.has_failed(rows)


@pytest.mark.parametrize("workload", [PLAIN, STEP], ids=lambda w: w.name)
def test_layers_give_the_numbers_of_the_reference(workload):
    built, missing = build(Work(workload, "float32"), list(LAYERS))
    assert set(built) == (set(LAYERS) if workload is STEP else {"compat.GRU", "tritongru.GRU"}), missing
    assert all("one step" in reason for reason in missing.values())


def test_streams_and_cells_go_on_from_their_last_state():
    work = Work(STEP, "float32")
    built, _ = build(work, ["Stream.step", "Stream.step-eager", "nn.GRUCell"])  # one step has been taken to compare
    seconds = [make_call(contender, work, INFERENCE)(1) for contender in built.values()]
    for second in seconds[1:]:
        torch.testing.assert_close(second, seconds[0])
    assert work.error(seconds[0], 1) > 1e-3
