"""What must hold at the ends of the range for any backend: checks for test_extremes.py and for the kernels' own."""

from __future__ import annotations

from dataclasses import replace

import torch

from tritongru import gru
from tritongru.call.errors import UnsupportedError
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import FLOOR_IN_EPSILONS, check, largest_error, machine_epsilon

SMALL = Case(3, 8, 5, 9)
# Quantities with one row per row of the batch.
PER_ROW = ("outputs", "state", "d x", "d initial_state", "d reset_state")
VARIANTS = [
    Case(3, 6, 4, 9, reset_after=after, layout=layout) for after in (True, False) for layout in ("keras", "torch")
]
SCALES = [(1e4, 1.0), (1.0, 1e4), (1e4, 1e4), (100.0, 1.0), (1e-8, 1e-8), (1e-8, 1.0), (1.0, 1e-8), (1e-40, 1e-40)]


def accepts(backend: str, case: Case) -> bool:
    """Return whether `backend` runs the case."""
    try:
        gru(**make_arguments(replace(case, batch=1, time=1)), backend=backend)
    except UnsupportedError:
        return False
    return True


def check_scale(backend: str, case: Case, x_scale: float, state_scale: float, use_bias: bool) -> None:
    """Inputs and states of that size: values and gradients by the one rule; half precision's gradients are finite."""
    arguments = make_arguments(replace(case, use_bias=use_bias))
    arguments["x"] = arguments["x"] * x_scale
    arguments["initial_state"] = arguments["initial_state"] * state_scale
    truth = run_case(in_dtype(arguments, torch.float64), "reference")
    oracle = run_case(arguments, "reference")
    # The slope of a saturated gate is exp(-|a|), and a is known to eps |a|; |a| is about the size of what comes in.
    amplification = max(1.0, x_scale, state_scale)
    half = case.dtype in ("float16", "bfloat16")
    for name, value in run_case(arguments, backend).items():
        assert value.isfinite().all(), name
        if name.startswith("d "):
            if not half:
                check(name, value, oracle[name], truth[name], amplification=amplification)
        else:
            check(name, value, oracle[name], truth[name])


def check_rows_are_apart(backend: str, case: Case, argument: str, bad: float) -> None:
    """A row of `bad` in one argument changes no bit of any other row, forward or backward."""
    arguments = make_arguments(case)
    clean = run_case(arguments, backend)
    changed = arguments[argument].clone()
    changed[1] = bad
    results = run_case(arguments | {argument: changed}, backend)
    others = [0, 2]
    for name in PER_ROW:
        if name in clean:
            assert torch.equal(results[name][others], clean[name][others]), name
    if bad != bad and not case.resets:
        assert results["outputs"][1].isnan().all()
        # The weights belong to all rows: their gradient is the sum over them, and says so.
        assert all(results[name].isnan().any() for name in ("d kernel", "d recurrent_kernel") if argument == "x")


def check_padding_does_not_matter(backend: str, case: Case, bad: float) -> None:
    """What stands in x at steps not taken, or in reset states not used, changes no bit of anything."""
    case = replace(case, mask=True, lengths=True, resets=True, reset_state="steps")
    arguments = make_arguments(case)
    taken = arguments["mask"] & (torch.arange(case.time)[None] < arguments["lengths"][:, None])
    clean = run_case(arguments, backend)
    changed = {
        "x": torch.where(taken[..., None], arguments["x"], bad),
        "reset_state": torch.where(arguments["resets"][..., None], arguments["reset_state"], bad),
    }
    results = run_case(arguments | changed, backend)
    for name, value in clean.items():
        assert value.isfinite().all(), name
        assert torch.equal(results[name], value), name
    assert not results["d x"][~taken].any()


def check_a_reset_ends_it(backend: str, case: Case, bad: float) -> None:
    """A state lost to `bad` is whole again after a reset: from there on every bit is that of a clean run."""
    case = replace(case, resets=True)
    arguments = make_arguments(case)
    resets = torch.zeros_like(arguments["resets"])
    resets[:, 3] = True
    arguments["resets"] = resets
    clean = run_case(arguments, backend)
    changed = arguments["x"].clone()
    changed[1, 2] = bad
    results = run_case(arguments | {"x": changed}, backend)
    assert not results["outputs"][1, 2].equal(clean["outputs"][1, 2])
    for name in ("outputs", "d x"):
        assert torch.equal(results[name][:, 3:], clean[name][:, 3:]), name
    assert torch.equal(results["state"], clean["state"])


def assert_same_row(backend: str, value: torch.Tensor, other: torch.Tensor, name: str) -> None:
    """The same bits; on a CPU, where some products have as many rows as are valid, the same but for rounding."""
    if backend not in ("eager", "numba"):
        assert torch.equal(value, other), name
        return
    allowed = FLOOR_IN_EPSILONS[value.dtype] * machine_epsilon(value.dtype) * float(other.abs().max())
    assert largest_error(value, other) <= allowed, name


def check_rows_without_steps(backend: str, case: Case) -> None:
    """Rows masked throughout, by mask or by length 0: the state passes through, forward and backward, exactly."""
    arguments = make_arguments(case)
    nothing = torch.tensor([True, False, True])
    full = torch.full((case.batch,), case.time)
    by_mask = {"mask": (~nothing)[:, None].expand(case.batch, case.time).contiguous()}
    by_lengths = {"lengths": torch.where(nothing, 0, full)}
    plain = run_case(arguments | {"lengths": full}, backend)
    found = [run_case(arguments | given, backend) for given in (by_mask, by_lengths)]
    generator = torch.Generator().manual_seed(1)
    given = [torch.randint(-8, 9, plain[name].shape, generator=generator) / 8 for name in ("outputs", "state")]
    for results in found:
        assert torch.equal(results["state"][nothing], arguments["initial_state"][nothing])
        assert not results["outputs"][nothing].any()
        assert not results["d x"][nothing].any()
        assert torch.equal(results["d initial_state"][nothing].double(), given[1][nothing].double())
        for name in ("outputs", "state", "d x", "d initial_state"):
            assert_same_row(backend, results[name][1], plain[name][1], name)
    everything = torch.zeros(case.batch, case.time, dtype=torch.bool)
    results = run_case(arguments | {"mask": everything}, backend)
    for name in ("d kernel", "d recurrent_kernel"):
        assert not results[name].any(), name


def check_length_is_a_shorter_call(backend: str, case: Case) -> None:
    """Lengths 1 and T give the outputs of calls over as many steps, within the tolerance of those calls.

    The products before a scan have as many rows as there are steps, so no bits are promised here. test_row_order.py
    asks for them in the kernels' scans alone; `check_padding_does_not_matter` that nothing past a length is read.
    """
    arguments = make_arguments(case)
    lengths = torch.tensor([1, case.time, 2])
    outputs, state = gru(**arguments, lengths=lengths, backend=backend)
    for row, length in enumerate(lengths.tolist()):
        short: dict = arguments | {"x": arguments["x"][:, :length]}
        oracle, truth = gru(**short, backend="reference"), gru(**in_dtype(short, torch.float64), backend="reference")
        for name, value, right, exact in zip(
            ("outputs", "state"), (outputs[row, :length], state[row]), oracle, truth, strict=True
        ):
            check(f"{name} of row {row}", value, right[row], exact[row])
