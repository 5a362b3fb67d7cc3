"""What layer normalisation must give on any backend."""

from __future__ import annotations

import itertools

import torch

from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, moved_arguments, run_case
from tritongru.tools.oracle.tolerance import check, largest_error, tolerance

F64 = torch.float64
KINDS = ("separate", "joint")
FLAGS = list(itertools.product((False, True), (False, True), (False, True), (0, 1, 3)))


def grid(kind: str, layout: str, go_backwards: bool, time: int, batches, units, dtype_of) -> list[Case]:
    """Return a case for each of FLAGS (mask, lengths, resets, dropout masks), and of what else there is by turns.

    Args:
        kind: of the norm. batches, units: three each. dtype_of: the dtype by the number of the case.
    """
    return [
        Case(
            batches[seed % 3], time, 4, units[seed // 2 % 3], dtype_of(seed), seed,
            layout=layout, go_backwards=go_backwards, recompute=seed % 5 < 2, mask=mask, lengths=lengths,
            resets=resets, reset_state="rows" if resets else None, recurrent_dropouts=drops,
            input_dropouts=(0, 3, 1)[seed % 3], use_bias=seed % 7 > 0, time_major=seed % 4 == 3, layer_norm=kind,
            gates=seed % 7 == 4, zoneout=seed % 6 == 5, gradient_clip=0.5 if seed % 11 == 7 else None,
            zero_output_for_mask=seed % 3 == 1,
        )
        for seed, (mask, lengths, resets, drops) in enumerate(FLAGS)
    ]  # fmt: skip


def assert_equals_oracle(backend: str, case: Case, **changes) -> None:
    """Assert outputs, state and every gradient by name; `changes` replace arguments of the case.

    In float64 the oracle is the truth itself; the measure is then what float32 gets wrong, in proportion to the
    epsilons. A norm may enlarge an error, so that what one call gets wrong is one draw from a wide range: where it is
    not enough, the largest of some counts, of inputs one rounding away.
    """
    arguments = make_arguments(case) | changes
    truth = run_case(in_dtype(arguments, F64), "reference", case.seed)
    found = run_case(arguments, backend, case.seed)
    assert "d scale" in truth
    if case.dtype != "float64":
        oracle = run_case(arguments, "reference", case.seed)
        for name, value in found.items():
            check(f"{case}: {name}", value, oracle[name], truth[name])
        return
    single = in_dtype(arguments, torch.float32)
    drawn = [errors_in_float32(single, case.seed)]
    if any(largest_error(found[n], truth[n]) > tolerance(truth[n] + drawn[0][n], truth[n], F64) for n in truth):
        drawn += [errors_in_float32(in_dtype(given, torch.float32), case.seed) for given in moved_arguments(single)]
    for name, value in found.items():
        right = truth[name]
        check(f"{case}: {name}", value, right, right, moved=[right + errors[name] for errors in drawn])


def errors_in_float32(arguments: dict, seed: int) -> dict[str, torch.Tensor]:
    """Return what the oracle gets wrong in float32, in proportion to the epsilon of float64, by quantity."""
    exact = run_case(in_dtype(arguments, F64), "reference", seed)
    coarse = run_case(arguments, "reference", seed)
    return {name: (coarse[name].double() - right) * 2.0 ** (23 - 52) for name, right in exact.items()}
