"""Run every program of a kernel in a process of its own, over tensors in shared memory.

Triton's interpreter runs programs one after another, so programs that wait for each other would hang. Here each program
is a forked process, so the exchange runs for real: its atomics are the processor's, and its order is the scheduler's,
stirred by random delays at every load, store and atomic.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import signal
import time

import torch
from triton.runtime import interpreter


class ProgramFailed(RuntimeError):
    """A program's process ended badly or did not end in time."""


@contextlib.contextmanager
def process_per_program(
    delay: float = 0.0, seed: int = 0, timeout: float = 120.0, on_start=None, together: bool = False
):
    """Inside the block, kernels launch one process per program.

    Args:
        delay: longest pause in seconds, drawn for one in eight memory operations. seed: of the pauses.
        timeout: seconds until the processes are killed and ProgramFailed is raised.
        together: launches do not wait for their programs; the end of the block does. So several run at once.
        on_start: called in each process with (x, y) of the grid, before the program: to inject faults. A program that
            has been stopped (SIGSTOP) is killed when all others have ended.
    """
    original = interpreter.GridExecutor.__call__
    pending: dict[int, tuple[int, int]] = {}

    def call(self, *args, **kwargs):
        names = inspect.getfullargspec(self.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in names}
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                value.untyped_storage().share_memory_()
        grid = tuple(self.grid) + (1,) * (3 - len(self.grid))
        children = pending if together else {}
        for x in range(grid[0]):
            for y in range(grid[1]):
                child = os.fork()
                if child == 0:
                    _run_program(self, args, kwargs, grid, x, y, delay, seed, on_start)
                children[child] = (x, y)
        if not together:
            _wait_for(children, timeout)

    interpreter.GridExecutor.__call__ = call
    try:
        yield
        _wait_for(pending, timeout)
    finally:
        interpreter.GridExecutor.__call__ = original


def _run_program(executor, args, kwargs, grid, x, y, delay, seed, on_start):
    """Run program (x, y) in this process and end it; never returns."""
    status = 1
    try:
        torch.set_num_threads(1)
        _stir(delay, random.Random(f"{seed}-{x}-{y}"))
        if on_start is not None:
            on_start(x, y)
        inner = interpreter.GridExecutor
        one = inner(executor.fn, executor.arg_names, grid)
        arguments = inspect.getcallargs(one.fn, *args, **kwargs)
        interpreter._patch_lang(one.fn)
        arguments = {
            name: value if name in one.constexprs else interpreter._implicit_cvt(value)
            for name, value in arguments.items()
        }
        interpreter.interpreter_builder.set_grid_dim(*grid)
        interpreter.interpreter_builder.set_grid_idx(x, y, 0)
        one.fn(**arguments)
        status = 0
    except BaseException as error:
        print(f"program ({x}, {y}): {error!r}", flush=True)
    finally:
        os._exit(status)


def _stir(delay: float, generator: random.Random) -> None:
    if not delay:
        return
    builder = interpreter.interpreter_builder
    for name in ("create_load", "create_masked_load", "create_store", "create_masked_store", "create_atomic_rmw"):
        setattr(builder, name, _paused(getattr(builder, name), delay, generator))


def _paused(operation, delay: float, generator: random.Random):
    def paused(*args, **kwargs):
        if generator.random() < 0.125:
            time.sleep(generator.random() * delay)
        return operation(*args, **kwargs)

    return paused


def _wait_for(children: dict[int, tuple[int, int]], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    failed = []
    stopped: set[int] = set()
    while children:
        if stopped == children.keys():
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            break
        done, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if done and os.WIFSTOPPED(status):
            stopped.add(done)
        elif done:
            program = children.pop(done)
            if status:
                failed.append(program)
        elif time.monotonic() > deadline:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise ProgramFailed(f"programs {sorted(children.values())} did not end within {timeout} s")
        else:
            time.sleep(0.002)
    if failed:
        raise ProgramFailed(f"programs {sorted(failed)} ended with an error")
