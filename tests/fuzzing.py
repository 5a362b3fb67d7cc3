"""Checks of one configuration, shared by the quick profile (test_fuzz.py) and the deep one (fuzz.py)."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import strategies as st
from layer_checks import DropInCall, LayerCall, check_drop_in, check_layer, drop_in_calls, layer_calls
from strategies import Configuration, Leaf, call_arguments, configurations, make_leaves, plain_configurations
from torch import Tensor

from tritongru import gru, repeats, scan
from tritongru.backends.eager import layout
from tritongru.call.errors import UnsupportedError
from tritongru.environment import is_interpreted
from tritongru.functional import explain_call
from tritongru.reference import gru_reference
from tritongru.tools.oracle.cases import as_arguments
from tritongru.tools.oracle.tolerance import MOVES, check, largest_error, move, tolerance
from tritongru.tuning.configs import LaunchConfig, next_power_of_two

ORACLE = "oracle"  # no backend: see `call`
REGRESSIONS = Path(__file__).parent / "regressions.json"
WANTED = {
    "all": lambda name: True,
    "weights": lambda name: name.partition("[")[0] in ("kernel", "recurrent_kernel", "bias", "scale"),
    "all but zoneout": lambda name: name != "zoneout",
    "inputs": lambda name: name in ("x", "gates", "initial_state", "reset_state") or "dropout" in name,
    "none": lambda name: False,
}


def check_backends(c: Configuration) -> int:
    """Compare every CPU backend that accepts the call with the oracle in float64; return how many did."""
    # torch's own GRU sums in half precision on a CPU, which the tolerance's floor does not stand for.
    backends = ("reference", "eager", "numba", *(("aten",) if c.torch_dtype().itemsize > 2 else ()))
    if c.seed % 2:
        return check_against_oracle(c, backends)
    # Two steps at a time, so that short sequences cross from chunk to chunk as well.
    with mock.patch.multiple(layout, CHUNK=1, CHUNK_ROWS=2 * max(c.batch, 1)):
        return check_against_oracle(c, backends)


def check_kernels(c: Configuration) -> int:
    """Compare the Triton kernels, in the interpreter or on a GPU, with the oracle in float64."""
    from tritongru.backends.triton.scan import use_config

    with use_config(launch_config(c)), round_to_nearest():
        return check_against_oracle(c, ("triton",))


@contextlib.contextmanager
def round_to_nearest():
    """Make Triton's interpreter round to bfloat16 as a GPU does; its own cast cuts the digits off."""
    if not is_interpreted():
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder, original = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.cast_impl

    def cast(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return original(self, src, dst_type)
        bits = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits.reshape(src.data.shape), dst_type.scalar)

    builder.cast_impl = cast
    try:
        yield
    finally:
        builder.cast_impl = original


def launch_config(c: Configuration) -> LaunchConfig:
    """Return tiles for the schedule; the interpreter runs one program after another, so one must own all units."""
    whole = next_power_of_two(c.units)
    if c.schedule == "steps":
        return LaunchConfig("steps", 16, 16, 16)
    if c.schedule in ("persistent", "streamed"):
        return LaunchConfig(c.schedule, 16, whole if is_interpreted() else 16, 16)
    return LaunchConfig("single", 16, whole, whole)


@contextlib.contextmanager
def packing_weights(backend: str, always: bool) -> Iterator[None]:
    """Let numba pack weights also for few steps, which else read them as they lie."""
    if backend != "numba" or not always:
        yield
        return
    short = importlib.import_module("tritongru.backends.numba.short")
    repeats.forget()
    with mock.patch.object(short, "MOST_STEPS", 0):
        yield
    repeats.forget()


def check_against_oracle(c: Configuration, backends: tuple[str, ...]) -> int:
    """Assert outputs, state and gradients by name, for each of `backends` that accepts the call."""
    leaves = make_leaves(c)
    truth = run(c, leaves, torch.float64, ORACLE)
    oracle = run(c, leaves, c.torch_dtype(), ORACLE)
    if not all(float(value.abs().max()) < 1000 for r in (truth, oracle) for value in r.values() if value.numel()):
        return 0  # An explosive activation left what the dtype resolves; there is nothing to compare.
    arguments = call_arguments(c, copied(c, leaves, c.torch_dtype()))
    accepted = [backend for backend in backends if accepts(arguments, backend)]
    measures: list[dict[str, Tensor]] = []
    for backend in accepted:
        with packing_weights(backend, c.seed % 2 == 1):
            results = run(c, leaves, c.torch_dtype(), backend)
            assert results.keys() == truth.keys()
            if backend == "numba":  # its second call of a kind takes a shorter way
                again = run(c, leaves, c.torch_dtype(), backend)
                for name, value in results.items():
                    assert bool(((again[name] == value) | (value != value)).all()), f"numba: {name} of a second call"
        for name, right in truth.items():
            assert results[name].dtype == c.torch_dtype(), f"{backend}: {name} is {results[name].dtype}"
            error = largest_error(results[name], right)
            if error <= tolerance(oracle[name], right, c.torch_dtype()):
                continue
            measures = measures or [oracle, *further_measures(c, leaves, truth)]
            worst = max((measure[name] for measure in measures), key=lambda value: largest_error(value, right))
            check(f"{backend}: {name}", results[name], worst, right)
    return len(accepted)


def further_measures(c: Configuration, leaves: dict[str, Leaf], truth: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return results as far from the truth as rounding explains, for where the oracle's own error says too little.

    On a handful of numbers the oracle may be exact by luck, and in float64 it is the truth. So the measure is also what
    one rounding of every input changes, and for float64 what float32 gets wrong, in proportion to the epsilons. A norm
    takes most of a gradient away, and what is left is as good as the roundings inside: so with one the measure is also
    what the oracle in the call's dtype gets wrong on those inputs.
    """
    moved = [disturb(leaves, c, number) for number in range(MOVES)]
    measures = [run(c, inputs, torch.float64, ORACLE) for inputs in moved]
    if c.layer_norm:
        measures += [run(c, inputs, c.torch_dtype(), ORACLE) for inputs in moved]
    if c.dtype == "float64":
        # A sum that cancels may be right by luck in one draw.
        for number in range(MOVES):
            inputs = disturb(leaves, c, number, torch.float32)
            exact, coarse = (run(c, inputs, dtype, ORACLE) for dtype in (torch.float64, torch.float32))
            wrong = {name: (coarse[name].double() - right) * 2.0 ** (23 - 52) for name, right in exact.items()}
            measures.append({name: right + wrong[name] for name, right in truth.items()})
    return measures


def disturb(
    leaves: dict[str, Leaf], c: Configuration, number: int, rounding: torch.dtype | None = None
) -> dict[str, Leaf]:
    """Return `leaves` with every number one rounding away, in float64; where `rounding` is a dtype, numbers of it."""
    generator = torch.Generator().manual_seed(c.seed + 3 + number)
    epsilon = torch.finfo(rounding or c.torch_dtype()).eps

    def moved(leaf: Leaf) -> Leaf:
        value = move(leaf.view(leaf.base), epsilon, generator)
        return Leaf(value if rounding is None else value.to(rounding).double(), lambda base: base)

    return {name: moved(leaf) for name, leaf in leaves.items()}


def accepts(arguments: dict, backend: str) -> bool:
    """Return whether `backend` runs the call."""
    try:
        explain_call(as_arguments(arguments), backend)
    except UnsupportedError:
        return False
    return True


def call(arguments: dict, backend: str) -> tuple[Tensor, Tensor]:
    """Return outputs and state of one call.

    The oracle gets its arguments as they were drawn: what checks and rewrites them for every backend is tested too.
    """
    if backend != ORACLE:
        return (scan if "gates" in arguments else gru)(**arguments, backend=backend)
    arguments = {name: value for name, value in arguments.items() if name != "recompute"}
    if "gates" in arguments:
        arguments |= {"x": arguments.pop("gates"), "kernel": None}
    return gru_reference(**arguments)


def copied(c: Configuration, leaves: dict[str, Leaf], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return `leaves` in `dtype`, asking for the wanted gradients."""
    # The gradient of one mask for all steps and rows is a sum that cancels; it is autograd's own sum besides.
    shared = c.input_dropout_form == "shared"

    def wanted(name: str) -> bool:
        return WANTED[c.wanted](name) and not (shared and name.startswith("input_dropout"))

    return {
        name: leaf.view(leaf.base.to(dtype, copy=True).requires_grad_(wanted(name))) for name, leaf in leaves.items()
    }


def run(c: Configuration, leaves: dict[str, Leaf], dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Return outputs, state and the wanted gradients, by name."""
    tensors = copied(c, leaves, dtype)
    outputs, state = call(call_arguments(c, tensors), backend)
    results = {"outputs": outputs.detach(), "state": state.detach()}
    generator = torch.Generator().manual_seed(c.seed + 2)
    pairs = []
    for kind, value in (("outputs", outputs), ("state", state)):
        # Eighths, so that a cotangent is the same number in every dtype.
        cotangent = torch.randint(-8, 9, value.shape, generator=generator).to(dtype) / 8
        if c.loss in ("both", kind) and value.requires_grad:
            pairs.append((value, cotangent))
    names = [name for name, value in tensors.items() if value.requires_grad]
    if not pairs:
        return results | {f"d {name}": torch.zeros_like(tensors[name]) for name in names}
    gradients = torch.autograd.grad(
        [value for value, _ in pairs],
        [tensors[name] for name in names],
        [given for _, given in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    return results | {f"d {name}": value for name, value in zip(names, gradients, strict=True)}


@dataclass(frozen=True)
class Target:
    """What is fuzzed: how configurations are drawn, and the check of one, which returns how many it compared."""

    name: str
    record: type
    strategy: Callable[[], st.SearchStrategy]
    check: Callable[[Any], int]

    def recorded(self) -> list:
        """Return the configurations of tests/regressions.json: what once failed, and must not again."""
        return [self.record(**entry["changes"]) for entry in json.loads(REGRESSIONS.read_text())[self.name]]


def _on_cpu() -> st.SearchStrategy:
    return configurations() | plain_configurations()


def _on_kernels() -> st.SearchStrategy:
    # Few steps: the interpreter is slow, and what a step can do wrong shows by the third.
    dtype, time = st.sampled_from(("float32", "bfloat16", "float16")), st.sampled_from((2, 3, 1, 4, 0))
    # The kernels refuse zoneout's gradient, and a refused configuration compares nothing.
    wanted = st.sampled_from(("all but zoneout", "all but zoneout", "weights", "inputs", "none"))
    return configurations(dtype=dtype, time=time, wanted=wanted)


TARGETS = {
    target.name: target
    for target in (
        Target("backends", Configuration, _on_cpu, check_backends),
        Target("kernels", Configuration, _on_kernels, check_kernels),
        Target("drop_in", DropInCall, lambda: drop_in_calls, check_drop_in),
        Target("layer", LayerCall, lambda: layer_calls, check_layer),
    )
}
