"""Layer normalisation in the numba scan: against the oracle, rows without spread, and the ends of the range."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from extremes import (
    check_a_reset_ends_it,
    check_length_is_a_shorter_call,
    check_padding_does_not_matter,
    check_rows_are_apart,
    check_rows_without_steps,
)
from norm_checks import KINDS, assert_equals_oracle, grid

from tritongru import UnsupportedError, compat, explain, gru
from tritongru.tools.oracle.cases import Case, make_arguments

# Fewer units than a vector has lanes, whole vectors, and some left over.
UNITS = (5, 16, 19)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout, go_backwards", list(itertools.product(("keras", "torch"), (False, True))))
def test_grid(divided: str, kind: str, layout: str, go_backwards: bool) -> None:
    for case in grid(
        kind, layout, go_backwards, 6, (1, 3, 11), UNITS, lambda seed: "float64" if seed % 4 else "float32"
    ):
        assert_equals_oracle("numba", case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 1, 1),
        Case(1, 9, 3, 17),
        Case(16, 12, 40, 64, lengths=True, layout="torch"),
        Case(13, 4, 7, 340, layout="torch", recurrent_dropouts=3),
        Case(4, 8, 7, 31, "float16", resets=True, reset_state="steps"),
        Case(4, 8, 7, 31, "bfloat16", mask=True),
        Case(9, 5, 3, 8, "float64", activation="softsign", recurrent_activation="hard_sigmoid"),
        Case(2, 0, 3, 4, "float64"),
        Case(0, 3, 3, 4, "float64", mask=True),
    ],
    ids=str,
)
def test_shapes_and_dtypes(kind: str, case: Case) -> None:
    for recompute in (False, True):
        assert_equals_oracle("numba", replace(case, layer_norm=kind, recompute=recompute))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_without_spread(kind: str, dtype: str) -> None:
    """All sums of a row are the same whole number, so that its variance is exactly zero: epsilon alone divides."""
    case = Case(3, 5, 4, 9, dtype, layer_norm=kind)
    given = make_arguments(case)
    x = torch.randint(-8, 9, given["x"].shape).to(given["x"].dtype)
    kernel = torch.randint(-8, 9, (4, 1)).to(x.dtype).expand(4, 27).clone()
    changes = dict(x=x, kernel=kernel, recurrent_kernel=torch.zeros_like(given["recurrent_kernel"]))
    assert_equals_oracle("numba", case, **changes)
    # The bias is then all there is.
    outputs, _ = gru(**(given | changes | dict(initial_state=None)), backend="numba")
    b, c = (part.chunk(3) for part in given["bias"])
    z, r = torch.sigmoid(b[0] + c[0]), torch.sigmoid(b[1] + c[1])
    new = (1 - z) * torch.tanh(b[2] + r * c[2])
    torch.testing.assert_close(outputs[:, 0], new.expand(3, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, 1e-8])
def test_sizes_of_states(kind: str, size: float) -> None:
    """A norm takes the size of what it is given away, until epsilon is larger than the variance."""
    for dtype in ("float32", "float64"):
        case = Case(3, 6, 5, 9, dtype, layer_norm=kind)
        given = make_arguments(case)
        assert_equals_oracle("numba", case, x=given["x"] * size, initial_state=given["initial_state"] * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e38])
def test_the_ends_of_the_range(kind: str, bad: float) -> None:
    for layout in ("keras", "torch"):
        case = Case(3, 6, 4, 9, layout=layout, layer_norm=kind)
        for changed in (case, replace(case, recompute=True), replace(case, recurrent_dropouts=3, resets=True)):
            for argument in ("x", "initial_state"):
                check_rows_are_apart("numba", changed, argument, bad)
        for drops in (0, 3):
            check_padding_does_not_matter("numba", replace(case, recurrent_dropouts=drops, recompute=drops == 3), bad)
        if bad != -1e38:
            check_a_reset_ends_it("numba", case, bad)
        check_rows_without_steps("numba", case)
        check_length_is_a_shorter_call("numba", case)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_chosen_and_refuses_what_eager_refuses(kind: str) -> None:
    arguments = make_arguments(Case(layer_norm=kind))
    layer = compat.GRU(3, 4, bidirectional=True, layer_norm=kind)
    decision = explain(layer, torch.randn(5, 2, 3))
    assert decision.backend == "numba" and set(decision.rejected) == {"triton", "aten", "eager", "reference"}
    for backend in ("numba", "eager"):
        with pytest.raises(ValueError, match=f"`layer_norm`='{kind}' needs reset_after=True"):
            gru(**make_arguments(Case(reset_after=False)), layer_norm=kind, backend=backend)
        with pytest.raises(UnsupportedError, match="activation='gelu'"):
            gru(**(arguments | dict(activation="gelu")), backend=backend)
