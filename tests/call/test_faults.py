"""Faults of the device, of Triton and of memory: "auto" continues with one warning that names the cause, a named
backend raises, and nothing else is caught. Each fault is injected where it would arise; no GPU is needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import textwrap
import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tritongru
from tritongru import ExchangeError, FallbackWarning, UnsupportedError, dispatch, environment, faults, functional
from tritongru.backends import numba
from tritongru.backends.eager import continuation
from tritongru.backends.triton import reasons
from tritongru.call.arguments import Arguments
from tritongru.call.errors import forget_warnings
from tritongru.tools.oracle.cases import Case, make_arguments, run_case
from tritongru.tools.oracle.compare import compare_backend
from tritongru.tuning.configs import MOST_WAVES, PERSISTENT, STEPS, Device, choose, count_waves

CASE = Case(3, 6, 4, 9, "float64", mask=True)


@pytest.fixture(autouse=True)
def no_memory_of_failures():
    faults.forget()
    yield
    faults.forget()


@pytest.fixture
def launch(monkeypatch):
    """The launches, answered by the eager scan, and a dispatcher that takes them for the kernels of this device."""
    module = pytest.importorskip("tritongru.backends.triton.scan")
    if (environment.triton_release() or (0, 0)) < environment.LOWEST_TRITON:
        pytest.skip("Triton is older than the kernels need")

    def scan(function):
        def run(*arguments):
            run.calls += 1
            return function(*arguments[:-1])

        run.calls = 0
        return run

    monkeypatch.setattr(numba, "reasons_against_numba", lambda: ("numba is not installed",))
    monkeypatch.setattr(module, "scan_forward", scan(continuation.scan_forward))
    monkeypatch.setattr(module, "scan_backward", scan(continuation.scan_backward))
    monkeypatch.setitem(dispatch.REASONS_AGAINST, "triton", lambda facts: [])
    monkeypatch.setattr(reasons, "reasons_against_trying", reasons._reasons_from_failures)
    return module


def failing(error: BaseException, times: int = 10**9):
    """A launch that raises `error` the first `times` times, then is the eager scan."""

    def run(*arguments):
        run.calls += 1
        if run.calls <= times:
            raise error
        return run.then(*arguments[:-1])

    run.calls = 0
    run.then = continuation.scan_forward
    return run


def triton_error(name: str, *arguments) -> Exception:
    errors = pytest.importorskip("triton.runtime.errors")
    return getattr(errors, name)(*arguments)


def compilation_error() -> Exception:
    import ast

    from triton.compiler.errors import CompilationError

    return CompilationError("def kernel(): ...", ast.parse("x = 1").body[0], "cannot lower this dot")


def driver_error(text: str) -> Exception:
    return RuntimeError(f"Triton Error [CUDA]: {text}")


FAULTS = {
    "memory, torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "memory, launch": lambda: driver_error("out of memory"),
    "shared memory": lambda: triton_error("OutOfResources", 300000, 232448, "shared memory"),
    "assembler": lambda: triton_error("PTXASError", "ptxas fatal: Value 'sm_999' is not defined"),
    "compiler": compilation_error,
    "old driver": lambda: driver_error("device kernel image is invalid"),
    "no kernel image": lambda: driver_error("no kernel image is available for execution on the device"),
    "triton module": lambda: ImportError("libtriton.so: undefined symbol", name="triton._C.libtriton"),
}


def run_quietly(arguments: dict, backend: str = "auto") -> tuple[dict, list]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = run_case(arguments, backend)
    return results, [w for w in caught if issubclass(w.category, FallbackWarning)]


def assert_right(results: dict, arguments: dict) -> None:
    for name, value in run_case(arguments, "eager").items():
        # The launches' results are summed in another order than the eager backend's own.
        assert torch.allclose(results[name], value, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("direction", ["scan_forward", "scan_backward"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_auto_continues_with_one_warning_that_names_the_cause(launch, monkeypatch, direction, fault):
    error = fault()
    monkeypatch.setattr(launch, direction, run := failing(error))
    arguments = make_arguments(CASE)
    results, caught = run_quietly(arguments)
    assert_right(results, arguments)
    assert run.calls == 1
    assert len(caught) == 1
    assert type(error).__name__ in str(caught[0].message)
    assert " ".join(str(error).split()) in str(caught[0].message)
    results, again = run_quietly(arguments)
    assert_right(results, arguments)
    assert not again, "the cause is named once"


@pytest.mark.parametrize("direction", ["scan_forward", "scan_backward"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_named_backend_raises_the_error_itself(launch, monkeypatch, direction, fault):
    error = fault()
    monkeypatch.setattr(launch, direction, failing(error))
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            run_case(make_arguments(CASE), "triton")
        assert caught.value is error


def test_a_failing_compile_is_tried_once_for_calls_alike(launch, monkeypatch):
    monkeypatch.setattr(launch, "scan_forward", run := failing(compilation_error()))
    for case in (CASE, CASE, replace(CASE, batch=5, time=2)):
        run_quietly(make_arguments(case))
    assert run.calls == 1
    run_quietly(make_arguments(replace(CASE, units=10)))
    assert run.calls == 2


def test_the_decision_tells_what_ran(launch, monkeypatch):
    arguments = make_arguments(replace(CASE, mask=False, layout="torch"))
    call = Arguments(**arguments)
    assert functional.run(call)[2].backend == "triton"
    monkeypatch.setattr(launch, "scan_forward", failing(compilation_error()))
    with pytest.warns(FallbackWarning):
        first = functional.run(call)[2]
    assert first.backend == "eager"
    assert "cannot lower this dot" in first.rejected["triton"][0]
    # From then on the dispatcher knows, and torch's own GRU comes before the eager scan.
    second = functional.run(call)[2]
    assert second.backend == "aten"
    assert "cannot lower this dot" in second.rejected["triton"][0]


def test_the_plain_kernels_need_no_language_of_the_others(launch):
    """Of that of the kernels with weights in registers Triton 3.4 lacks a part."""
    code = (
        "import sys\n"
        "sys.modules['triton.experimental.gluon.language.nvidia.ampere'] = None\n"
        "from tritongru.backends.triton import families\n"
        "try:\n"
        "    families._launch_of('run_forward')\n"
        "except ImportError as error:\n"
        "    print(error.name)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    assert found.stdout.startswith("triton.experimental.gluon"), "the language is there all the same"


def test_a_lack_of_memory_is_met_three_times_in_a_row(launch, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory")
    arguments = make_arguments(CASE)
    monkeypatch.setattr(launch, "scan_forward", run := failing(error, times=2))
    for _ in range(4):
        run_quietly(arguments)
    assert run.calls == 4, "memory came back"
    monkeypatch.setattr(launch, "scan_forward", run := failing(error))
    for _ in range(5):
        run_quietly(arguments)
    assert run.calls == faults.ATTEMPTS_WITHOUT_MEMORY


def test_the_failed_launch_holds_no_memory_while_another_backend_runs(launch, monkeypatch):
    held = []

    def run(*arguments):
        workspace = torch.empty(1000)
        held.append(weakref.ref(workspace))
        raise torch.OutOfMemoryError(f"no room beside {tuple(workspace.shape)}")

    def look(*arguments, _scan=continuation.scan_forward, **options):
        assert held[0]() is None
        return _scan(*arguments, **options)

    monkeypatch.setattr(launch, "scan_forward", run)
    monkeypatch.setattr(continuation, "scan_forward", look)
    with pytest.warns(FallbackWarning):
        tritongru.gru(**make_arguments(CASE))
    assert held


class Bug(Exception):
    """An error of no known kind."""


NOT_CAUGHT = {
    "interrupt": KeyboardInterrupt(),
    "exchange": ExchangeError("programs of batch tiles [0] waited too long for each other"),
    "type": TypeError("scan_forward() got an unexpected argument"),
    "value": ValueError("`config` does not hold all units"),
    "assertion": AssertionError(),
    "shape": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "other": Bug("?"),
    "lost device": RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    "torch's lost device": RuntimeError("CUDA error: device-side assert triggered"),
    "our own module": ImportError("cannot import name 'x'", name="tritongru.backends.triton.kernels"),
    "disk, elsewhere": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("direction", ["scan_forward", "scan_backward"])
@pytest.mark.parametrize("error", NOT_CAUGHT.values(), ids=NOT_CAUGHT)
def test_everything_else_reaches_the_caller(launch, monkeypatch, direction, error):
    monkeypatch.setattr(launch, direction, failing(error))
    with pytest.raises(type(error)) as caught:
        run_case(make_arguments(CASE), "auto")
    assert caught.value is error
    assert not faults._failures


def test_errors_are_told_apart_by_where_they_arose():
    """The same RuntimeError and OSError, from Triton's code and from ours."""

    def raised_in(package: str, statement: str) -> BaseException:
        scope = {"__name__": package}
        exec(f"def fail():\n    {statement}", scope)
        with pytest.raises(Exception) as caught:
            scope["fail"]()
        return caught.value

    for statement in (
        "raise RuntimeError('Failed to find C compiler')",
        "open('/no/such/ptxas')",
        "import subprocess; subprocess.check_call(['false'])",
    ):
        assert faults.classify(raised_in("triton.runtime.build", statement)) == faults.OTHER
        assert faults.classify(raised_in("tritongru.backends.triton.scan", statement)) is None
        assert faults.classify(raised_in("torch.anything", statement)) is None
    triton = pytest.importorskip("triton")
    with pytest.raises(AttributeError) as caught:
        triton.no_such_name  # noqa: B018
    assert faults.classify(caught.value) == faults.OTHER
    with pytest.raises(AttributeError) as caught:
        tritongru.no_such_name  # noqa: B018
    assert faults.classify(caught.value) is None


@pytest.mark.parametrize(
    "triton, numpy, runs",
    [("3.6.0", "2.3.5", True), ("3.6.0+git1", "2.4.0rc1", False), ("3.4.0", "3.0", False), ("3.7.1", "2.5.5", True)],
)
def test_an_interpreter_that_is_too_old_for_numpy(monkeypatch, triton, numpy, runs):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", triton)
    monkeypatch.setattr(np, "__version__", numpy)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reasons = environment.reasons_against_environment("cpu")
    assert reasons == (
        () if runs else (f"the interpreter of triton {triton} needs numpy older than 2.4, found {numpy}",)
    )
    if not runs:
        (row,) = compare_backend(replace(CASE, dtype="float32"), "triton", torch.device("cpu"))
        assert row.verdict == "not run" and row.note == reasons[0]


@pytest.mark.parametrize("text", ["operation not supported", "too many blocks in cooperative launch"])
def test_a_refused_grid_runs_one_launch_per_step(launch, monkeypatch, text):
    index = 0
    monkeypatch.setattr(environment, "_has_cooperative_launch", lambda index: True)
    assert environment.can_cooperate(index)
    monkeypatch.setattr(launch, "scan_forward", run := failing(driver_error(text), times=1))
    arguments = make_arguments(CASE)
    results, caught = run_quietly(arguments)
    assert_right(results, arguments)
    assert run.calls == 2, "the kernels themselves, another way"
    assert launch.scan_backward.calls == 1
    assert len(caught) == 1 and text in str(caught[0].message) and "per step" in str(caught[0].message)
    assert not environment.can_cooperate(index)
    assert not run_quietly(arguments)[1]


def test_a_grid_refused_twice_goes_to_another_backend(launch, monkeypatch):
    monkeypatch.setattr(launch, "scan_forward", run := failing(driver_error("operation not supported")))
    arguments = make_arguments(CASE)
    results, caught = run_quietly(arguments)
    assert_right(results, arguments)
    assert run.calls == 2 and len(caught) == 2


class FakeDriver:
    """libcuda's two functions, for a GPU whose attribute 95 is `value`."""

    def __init__(self, value: int, status: int = 0):
        self.value, self.status = value, status

    def cuDeviceGet(self, device, index):
        return self.status

    def cuDeviceGetAttribute(self, value, attribute, device):
        assert attribute == 95
        value._obj.value = self.value
        return self.status


@pytest.mark.parametrize("value, status, expected", [(1, 0, True), (0, 0, False), (0, 999, True)])
def test_the_attribute_of_cooperative_launches(launch, monkeypatch, value, status, expected):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(value, status))
    properties = SimpleNamespace(
        multi_processor_count=132, shared_memory_per_block_optin=232448, shared_memory_per_block=49152, warp_size=32,
        name="a GPU", major=9, minor=0,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    limits = launch.device_limits(torch.device("cuda", 0))
    assert limits.cooperative is expected
    assert choose(1024, 16, 2, limits).schedule == (PERSISTENT if expected else STEPS)


def test_without_the_driver_library_the_launch_will_tell(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert environment.can_cooperate(0)


@pytest.mark.parametrize("processors", [1, 14, 16, 28])
def test_a_small_slice_gets_no_grid_that_does_not_fit(processors):
    device = Device(processors, 227 * 1024)
    for units in (16, 100, 256, 512, 1024):
        for batch in (1, 16, 64, 500):
            config = choose(units, batch, 2, device)
            if config.waits:
                assert -(-units // config.block_h) <= processors
                assert 1 <= count_waves(config, units, batch, device) <= MOST_WAVES
    assert choose(1024, 64, 2, device).schedule == STEPS


ENVIRONMENTS = {
    "absent": (dict(has_triton=lambda: False), "triton is not installed"),
    "old GPU": (dict(capability=(6, 1)), "compute capability 6.1 of cuda:0 is below 7.0"),
    "old triton": (dict(version="2.1.0"), "triton 2.1.0 is older than 3.4"),
    "no version": (dict(version=None), "older than 3.4"),
    "driver": (
        dict(driver=RuntimeError("0 active drivers ([]). There should only be one.")),
        "triton's driver does not start (RuntimeError: 0 active drivers",
    ),
}


@pytest.mark.parametrize("changes, text", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_an_unfit_environment(monkeypatch, changes, text):
    """auto: one warning for a GPU's call, none on a CPU; a named backend raises with the reason."""
    simulate_gpu(monkeypatch, **changes)
    arguments = make_arguments(CASE)
    results, caught = run_quietly(arguments)
    assert_right(results, arguments)
    assert len(caught) == 1 and text in str(caught[0].message)
    assert not run_quietly(arguments)[1], "named once"
    with pytest.raises(UnsupportedError) as error:
        tritongru.gru(**arguments, backend="triton")
    assert text in str(error.value)
    # Where the call would not have taken the kernels anyway, there is nothing to warn of.
    forget_warnings()
    assert not run_quietly(make_arguments(replace(CASE, activation="gelu")))[1]


def simulate_gpu(monkeypatch, has_triton=None, capability=(9, 0), version="3.7.0", driver=None) -> None:
    """Take calls for those of a GPU in float32, with a Triton and a driver as given."""

    def check(arguments, _check=functional.check):
        call = _check(arguments)
        return call._replace(signature=call.signature._replace(device="cuda", dtype=torch.float32))

    def target():
        if driver is not None:
            raise driver

    modules = {
        "triton": SimpleNamespace(__version__=version) if version else SimpleNamespace(),
        "triton.language": SimpleNamespace(),
        "triton.runtime.driver": SimpleNamespace(
            driver=SimpleNamespace(active=SimpleNamespace(get_current_target=target))
        ),
    }
    monkeypatch.setattr(environment, "has_triton", has_triton or (lambda: True))
    monkeypatch.setattr(functional, "check", check)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(
        environment, "importlib", SimpleNamespace(import_module=modules.__getitem__, util=importlib.util)
    )
    monkeypatch.setattr(environment, "reasons_against_operators", lambda: ())


BROKEN = {
    # torch's own compiler copes with the first and not with the second, and without it no custom operator runs; these
    # calls, without gradients, need none.
    "half installed": ("from . import _C", "ImportError: cannot import name '_C'", 1),
    "library missing": ("raise OSError('libcuda.so.1: cannot open shared object file')", "OSError: libcuda.so.1", 1),
}


@pytest.mark.parametrize("source, text, count", BROKEN.values(), ids=BROKEN)
def test_a_broken_triton_on_the_path(tmp_path, source, text, count):
    """A real process that finds a broken triton: calls of a GPU continue, and each consequence is named once."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(source + "\n")
    script = f"""
        import warnings
        from dataclasses import replace
        import torch, tritongru
        from tritongru import functional
        from tritongru.tools.oracle.cases import Case, make_arguments

        plain, masked = make_arguments(Case()), make_arguments(Case(mask=True))
        with warnings.catch_warnings():
            warnings.simplefilter("error", tritongru.FallbackWarning)
            tritongru.gru(**plain)   # on a CPU there is nothing to warn of
        check = functional.check

        def check_for_gpu(arguments):
            call = check(arguments)
            return call._replace(signature=call.signature._replace(device="cuda"))

        functional.check = check_for_gpu
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for arguments in (plain, masked, plain, masked):
                expected = tritongru.gru(**arguments, backend="reference")
                found = tritongru.gru(**arguments)
                assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found))
        messages = [str(w.message) for w in caught if w.category is tritongru.FallbackWarning]
        assert len(messages) == {count} and all({text!r} in message for message in messages), messages
        try:
            tritongru.gru(**plain, backend="triton")
        except tritongru.UnsupportedError as error:
            assert {text!r} in str(error), error
        else:
            raise AssertionError("a named backend fell back")
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_any_error_of_tritons_import_is_a_reason(monkeypatch):
    simulate_gpu(monkeypatch)

    def broken(name):
        raise AttributeError("module 'enum' has no attribute 'StrEnum'")

    monkeypatch.setattr(environment, "importlib", SimpleNamespace(import_module=broken))
    assert "'StrEnum'" in environment.reasons_against_environment("cuda")[0]
    # Where the kernels could not run anyway, triton is not even imported.
    environment._import_reasons.cache_clear()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert environment.reasons_against_environment("cpu") == environment.reasons_against_environment("mps") == ()


def test_inside_torch_compile(launch, monkeypatch):
    arguments = make_arguments(replace(CASE, dtype="float32"))
    expected = tritongru.gru(**arguments, backend="eager")
    compiled = torch.compile(lambda: tritongru.gru(**arguments), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), expected)
    assert launch.scan_forward.calls == 1
    monkeypatch.setattr(launch, "scan_forward", run := failing(compilation_error()))
    with pytest.warns(FallbackWarning, match="cannot lower this dot"):
        torch.testing.assert_close(compiled(), expected)
    torch.testing.assert_close(compiled(), expected)
    assert run.calls == 1


def test_warnings_made_errors_stop_the_call(launch, monkeypatch):
    monkeypatch.setattr(launch, "scan_forward", failing(compilation_error()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        with pytest.raises(FallbackWarning, match="cannot lower this dot"):
            tritongru.gru(**make_arguments(CASE))
