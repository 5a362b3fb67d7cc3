"""The numba scan among processes and threads, and its compiled files among machines."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tritongru import gru
from tritongru.backends.numba import threads
from tritongru.backends.numba.compile import Kernel
from tritongru.backends.numba.kernels.meeting import observe
from tritongru.backends.numba.kernels.parts import take
from tritongru.backends.numba.kernels.vectors import pointer
from tritongru.tools.oracle.cases import Case, make_arguments, run_case

CASE = Case(12, 70, 5, 17)
MASKED = Case(12, 70, 5, 17, mask=True)


def run_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=300,
        env=os.environ | environment,
    )  # fmt: skip


FORWARD = """
    import sys, torch
    from tritongru.backends import numba
    from tritongru.call.problem import Inputs, Variant
    torch.manual_seed(0)
    inputs = Inputs(torch.randn(90, 12, 5), torch.randn(5, 51), None, torch.randn(17, 51), None, torch.zeros(12, 17))
    print(numba.run_forward(inputs, Variant(), True)[0].double().sum().item())
"""
# Whether this process or an earlier one compiles does not matter.
QUIET = """
    import logging
    logging.getLogger("tritongru").setLevel("ERROR")
"""
# The kernel that is compiled the fastest: for what does not depend on which it is.
PACK = """
    import sys, torch
    from tritongru.backends.numba import compile
    from tritongru.backends.numba.kernels import fields
    from tritongru.backends.numba.problem import Problem, pack_ahead
    compile.NOTICE_SECONDS = 0.1
    from tritongru.call.problem import Inputs, Variant
    torch.manual_seed(0)
    inputs = Inputs(torch.randn(90, 12, 5), torch.randn(5, 51), None, torch.randn(17, 51), None, torch.zeros(12, 17))
    problem = Problem(inputs, Variant())
    (plan,) = problem.plan_scan(0, 90, False)
    plan[fields.PACKERS] = 1  # not by the scan itself
    pack_ahead([plan], problem.dtype)
    print(problem.packed.view(torch.float32).double().sum().item())
"""


class Encoded(Dataset):
    """Calls inside of the worker, with gradients."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> torch.Tensor:
        results = run_case(make_arguments(Case(12, 70, 5, 17, seed=row)), "numba")
        return torch.cat([value.flatten() for value in results.values()])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_inside_data_workers(monkeypatch, start: str) -> None:
    """A forked worker begins after this process's threads have run; a spawned one imports everything anew."""
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    here = torch.stack([Encoded()[row] for row in range(4)])
    workers = DataLoader(Encoded(), 2, num_workers=2, multiprocessing_context=start, timeout=240)
    torch.testing.assert_close(torch.cat(list(workers)), here, rtol=0, atol=1e-5)


FORK = """
    import os, sys, torch
    from tritongru.backends import numba
    from tritongru.backends.numba import threads
    from tritongru.call.problem import Inputs, Variant
    threads.LEAST_WORK = 1
    torch.get_num_threads = lambda: 2
    inputs = Inputs(torch.randn(90, 12, 5), torch.randn(5, 51), None, torch.randn(17, 51), None, torch.zeros(12, 17))
    here = numba.run_forward(inputs, Variant(), True)[0]
    started, start = [], threads._thread.start_new_thread
    threads._thread.start_new_thread = lambda *work: (started.append(work), start(*work))
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            same = torch.equal(numba.run_forward(inputs, Variant(), True)[0], here)
            os._exit(0 if same and started else 1)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_a_child_has_threads_of_its_own() -> None:
    done = run_script(QUIET + FORK)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_threads_at_once(monkeypatch) -> None:
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    arguments = [make_arguments(Case(9 + number, 70, 4, 8 + number, seed=number)) for number in range(6)]
    expected = [run_case(given, "numba") for given in arguments]
    found: list = [None] * 6
    together = threading.Barrier(6)

    def work(number: int) -> None:
        together.wait()
        found[number] = [run_case(arguments[number], "numba") for _ in range(8)]

    running = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(240)
    for runs, right in zip(found, expected, strict=True):
        for results in runs:
            for name, value in right.items():
                torch.testing.assert_close(results[name], value, rtol=1e-5, atol=1e-6)


def test_no_more_threads_than_torch_has(monkeypatch) -> None:
    asked = []

    def team(work: int, task: int, count: int, flags: int) -> None:
        asked.append(count)
        run_here(work, task)

    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(threads, "find_team", lambda: team)
    monkeypatch.setattr(threads, "count_forks", lambda: 0)
    for count in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        for case in (MASKED, CASE, CASE):  # the third takes the shorter way
            asked.clear()
            run_case(make_arguments(case), "numba")
            assert asked == ([] if count == 1 else [count, count])  # the scan and the reverse scan


def run_here(work: int, task: int) -> None:
    """Call the function of C at an address."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)(task)


def note_beginning(plan, like):
    """Write the number of parts that had begun before this one, and wait until another has."""
    begun = pointer(plan[0], 0)
    begun[1 + plan[1]] = take(begun, 0)
    while observe(begun, 0) < plan[2]:
        pass


noting = Kernel(note_beginning)


def begin_parts(parts: int, together: int) -> list[int]:
    """Return in which place each part began; each waits until so many have begun."""
    begun = np.full(1 + parts, -1, np.int64)
    begun[0] = 0
    plans = np.array([(begun.ctypes.data, part, together) for part in range(parts)], np.int64)
    threads.run_parts(noting.for_dtype(np.dtype(np.float32)), plans)
    assert begun[0] == parts
    return begun[1:].tolist()


TEAMS = pytest.mark.parametrize("team", [threads.find_team(), None], ids=["torch's threads", "its own"])


@TEAMS
def test_every_part_runs_once_and_the_first_with_the_first(monkeypatch, team) -> None:
    monkeypatch.setattr(threads, "find_team", lambda: team)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for _ in range(20):
        places = begin_parts(6, together=2)
        assert sorted(places) == list(range(6)) and places[0] < 2


def test_without_other_threads_the_caller_does_it_all(monkeypatch) -> None:
    monkeypatch.setattr(threads, "find_team", lambda: lambda work, task, count, flags: run_here(work, task))
    monkeypatch.setattr(threads, "count_forks", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert begin_parts(4, together=1) == [0, 1, 2, 3]


@TEAMS
@pytest.mark.parametrize(("batch", "steps", "units"), [(16, 20, 64), (1, 200, 200)], ids=["rows", "units of one row"])
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer's signals here")
def test_what_a_signal_raises_is_raised(monkeypatch, team, batch: int, steps: int, units: int) -> None:
    """Whenever it comes, also while threads share a call; and no call hangs or returns something else."""

    def stop(*_) -> None:
        raise InterruptedError

    monkeypatch.setattr(threads, "find_team", lambda: team)
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x, w, r = torch.randn(batch, steps, 20), torch.randn(20, 3 * units) / 9, torch.randn(units, 3 * units) / 20
    right = [gru(x, w, r, backend="numba")[0] for _ in range(3)][0]
    before, raised = signal.signal(signal.SIGALRM, stop), 0
    try:
        for call in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5 + call * 1e-5)
                found = gru(x, w, r, backend="numba")[0]
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert torch.equal(found, right)
            except InterruptedError:
                raised += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised


FORK_FIRST = """
import logging, os, sys, torch, tritongru
logging.getLogger("tritongru").setLevel("ERROR")
torch.set_num_threads(2)
torch.randn(4_000_000).exp_().sum()  # on torch's threads, which a child does not have
child = os.fork()
if child == 0:
    tritongru.gru(torch.randn(16, 20, 64), torch.randn(64, 192), torch.randn(64, 192), backend="numba")
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_before_the_first_call() -> None:
    done = run_script(FORK_FIRST)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are known by GCC's interface, on Linux")
def test_torch_s_own_threads_are_taken() -> None:
    """Those of another library would wait for the cores while torch's turn."""
    assert "parallel backend: OpenMP" in torch.__config__.parallel_info()
    team, seen = threads.find_team(), set()
    assert team is not None
    note = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: (seen.add(threading.get_ident()), time.sleep(0.01)))
    product = torch.ones(400, 400)
    count = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        product @ product
        team(ctypes.cast(note, ctypes.c_void_p).value, None, 2, 0)
    assert len(seen) == 2 and len(os.listdir("/proc/self/task")) <= count + 1


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder that one process has filled, and what that process said."""
    folder = tmp_path_factory.mktemp("compiled")
    return folder, run_script(PACK, TRITONGRU_CACHE=str(folder))


@pytest.fixture
def filled(compiled, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(compiled[0], tmp_path / "filled")
    return tmp_path / "filled"


def test_compiled_files_serve_the_next_process(compiled) -> None:
    tmp_path, first = compiled
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb[ci]")}
    assert files and first.returncode == 0
    assert "kept for later processes" in first.stderr
    second = run_script(PACK, TRITONGRU_CACHE=str(tmp_path))
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb[ci]")}


def test_processes_that_compile_at_once_share_a_folder(tmp_path: Path) -> None:
    environment = os.environ | {"TRITONGRU_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(PACK)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    found = {process.communicate(timeout=300)[0] for process in running}
    assert len(found) == 1 and all(process.returncode == 0 for process in running)
    assert run_script(PACK, TRITONGRU_CACHE=str(tmp_path)).stderr == ""


def test_another_processor_has_files_of_its_own(filled: Path) -> None:
    """As on a folder shared by machines: code for one must not run on the other."""
    before = set(filled.rglob("*.nbc"))
    other = run_script(PACK, TRITONGRU_CACHE=str(filled), NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert other.returncode == 0
    assert len(set(filled.rglob("*.nbc"))) == 2 * len(before)
    assert run_script(PACK, TRITONGRU_CACHE=str(filled)).stderr == ""


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_script(PACK, TRITONGRU_CACHE=str(blocked / "inside"))
    assert done.returncode == 0 and float(done.stdout)
    assert "not kept: there is no cache folder" in done.stderr


READ_ONLY = """
    import builtins, io, os, sys
    inner = open
    def refuse(path, mode="r", *rest, **more):
        if str(path).startswith(sys.argv[1]) and set(mode) & set("wxa+"):
            raise PermissionError(13, "Permission denied", str(path))
        return inner(path, mode, *rest, **more)
    builtins.open = refuse
"""


def test_a_folder_that_can_only_be_read(tmp_path: Path, filled: Path) -> None:
    """Empty it is no use but no harm; filled when an image was built, it serves."""
    script, blank = textwrap.dedent(READ_ONLY) + textwrap.dedent(PACK), tmp_path / "empty"
    empty = run_script(script, str(blank), TRITONGRU_CACHE=str(blank))
    assert empty.returncode == 0 and "not kept: [Errno 13]" in empty.stderr
    assert not list(blank.rglob("*.nb[ci]"))
    served = run_script(script, str(filled), TRITONGRU_CACHE=str(filled))
    assert (served.stdout, served.stderr) == (empty.stdout, "")


def test_import_of_the_package_leaves_numba_alone() -> None:
    script = "import sys, tritongru, tritongru.backends.numba; sys.exit('numba' in sys.modules)"
    assert run_script(script).returncode == 0


def test_the_interpreter_ends_quietly() -> None:
    waiting = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    script = f"{QUIET}{FORWARD}\n    import threading; {waiting}\n"
    done = run_script("import tritongru.backends.numba.threads as t; t.LEAST_WORK = 1\n" + textwrap.dedent(script))
    assert (done.returncode, done.stderr) == (0, "")


WIDTHS = """
    import sys
    import torch
    sys.path[:0] = sys.argv[2:]
    from tritongru.backends.numba.kernels import vector_type
    vector_type.WIDTH = int(sys.argv[1])
    from test_numba_oracle import assert_equals_oracle
    from tritongru import gru
    from tritongru.tools.oracle.cases import Case, make_arguments
    for batch, time, units in ((1, 5, 40), (3, 9, 19), (9, 70, 17)):
        for layout in ("keras", "torch"):
            for reset_after in (True, False):
                case = Case(batch, time, 20, units, layout=layout, reset_after=reset_after)
                assert_equals_oracle(case)
                with torch.no_grad():
                    fast, right = (gru(**make_arguments(case), backend=name)[0] for name in ("numba", "reference"))
                assert (fast - right).abs().max() < 1e-5
    print(vector_type.count_lanes(4))
"""


@pytest.mark.parametrize("width", [32, 64])
def test_vectors_of_any_width_give_the_same_numbers(tmp_path: Path, width: int) -> None:
    """LLVM splits or joins vectors as wide as other processors' registers, so that their code runs here too."""
    from tritongru.backends.numba.kernels.vector_type import WIDTH

    here = Path(__file__).parent
    environment = {} if width == WIDTH else {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = run_script(WIDTHS, str(width), str(here), str(here.parent), **environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == width // 4


SHORT = """
    import torch
    from tritongru import gru
    x, kernel, recurrent_kernel = torch.randn(3, 16, 40), torch.randn(40, 192) / 9, torch.randn(64, 192) / 9
    for batch in (1, 2, 3):
        given = dict(x=x[:batch], kernel=kernel, recurrent_kernel=recurrent_kernel)
        fast, right = (gru(**given, backend=backend)[0] for backend in ("numba", "reference"))
        assert (fast - right).abs().max() < 1e-5
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a variable of glibc's")
def test_scratch_lives_as_long_as_the_scan() -> None:
    """Memory that is freed is at once no longer mapped, so a read after it ends the process."""
    done = run_script(QUIET + SHORT, MALLOC_MMAP_THRESHOLD_="4096")
    assert (done.returncode, done.stderr) == (0, "")


def test_gru_is_reached_through_its_operator() -> None:
    arguments = make_arguments(CASE)
    compiled = torch.compile(lambda x: gru(**(arguments | {"x": x}), backend="numba")[0], backend="eager")
    torch.testing.assert_close(compiled(arguments["x"]), gru(**arguments, backend="numba")[0])


def test_warm_compiles_what_calls_need(tmp_path: Path) -> None:
    tool = (
        "import argparse, sys; from tritongru.tools import warm; p = argparse.ArgumentParser(); warm.add_arguments(p)"
    )
    done = run_script(f"{tool}; sys.exit(warm.main(p.parse_args(['--inference'])))", TRITONGRU_CACHE=str(tmp_path))
    assert done.returncode == 0 and str(tmp_path) in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == [
        "short",
        "scan",
        "shared_scan",
        "pack",
        "parts",
    ]
    files = set(tmp_path.rglob("*.nbc"))
    assert len(files) == 5
    assert run_script(FORWARD, TRITONGRU_CACHE=str(tmp_path)).stderr == ""
    assert set(tmp_path.rglob("*.nbc")) == files
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_script(f"{tool}; sys.exit(warm.main(p.parse_args([])))", TRITONGRU_CACHE=str(blocked))
    assert done.returncode == 1 and "nothing compiled" in done.stderr
