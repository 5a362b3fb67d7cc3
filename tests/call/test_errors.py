"""Bad input: TypeError or ValueError that names the argument, before anything runs."""

from __future__ import annotations

import pytest
import torch

import tritongru
from tritongru.call.errors import check_units
from tritongru.tools.oracle.cases import Case, make_arguments

B, T, I, U = 3, 7, 5, 9


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


VALUE_ERRORS = {
    "x rank": (dict(x=zeros(B, I)), "`x`.*3"),
    "features": (dict(x=zeros(B, T, I + 1)), "`kernel`.*6 input features"),
    "kernel rank": (dict(kernel=zeros(I)), "`kernel`.*2 axes"),
    "kernel shape": (dict(kernel=zeros(I, 3 * U + 3)), "`kernel`.*27"),
    "kernel dtype": (dict(kernel=zeros(I, 3 * U, dtype=torch.float64)), "`kernel`.*float32.*float64"),
    "kernel device": (dict(kernel=torch.empty(I, 3 * U, device="meta")), "`kernel`.*cpu.*meta"),
    "recurrent shape": (dict(recurrent_kernel=zeros(U, 2 * U)), r"`recurrent_kernel`.*\(9, 18\)"),
    "no units": (dict(recurrent_kernel=zeros(0, 0), kernel=zeros(I, 0)), "`recurrent_kernel`"),
    "bias shape": (dict(bias=zeros(3 * U)), r"`bias`.*\(2, 27\).*reset_after=True.*\(27,\)"),
    "state shape": (dict(initial_state=zeros(B, U + 1)), r"`initial_state`.*\(3, 9\).*\(3, 10\)"),
    "state dtype": (dict(initial_state=zeros(B, U, dtype=torch.float16)), "`initial_state`.*float16"),
    "mask shape": (dict(mask=torch.ones(T, B, dtype=torch.bool)), r"`mask`.*\(3, 7\).*\(7, 3\)"),
    "mask rank": (dict(mask=torch.ones(B, T, I, dtype=torch.bool)), "`mask`"),
    "mask device": (dict(mask=torch.ones(B, T, dtype=torch.bool, device="meta")), "`mask`.*meta"),
    "resets shape": (dict(resets=torch.ones(B, T + 1, dtype=torch.bool)), "`resets`"),
    "lengths shape": (dict(lengths=torch.ones(B + 1, dtype=torch.long)), "`lengths`.*3"),
    "lengths above": (dict(lengths=torch.tensor([1, 2, T + 1])), r"`lengths`.*0\.\.7.*8"),
    "lengths below": (dict(lengths=torch.tensor([1, 2, -1])), "`lengths`.*-1"),
    "reset state alone": (dict(reset_state=zeros(B, U)), "`reset_state`.*`resets`"),
    "reset state name": (
        dict(resets=torch.ones(B, T, dtype=torch.bool), reset_state="zeros"),
        "`reset_state`.*'zeros'",
    ),
    "reset state shape": (
        dict(resets=torch.ones(B, T, dtype=torch.bool), reset_state=zeros(U)),
        r"`reset_state`.*\(9,\)",
    ),
    "dropout count": (dict(input_dropout=[zeros(B, T, I)] * 2), "`input_dropout`.*2"),
    "dropout shape": (dict(recurrent_dropout=zeros(B, U + 1)), "`recurrent_dropout`.*9"),
    "activation": (dict(activation="tanhh"), "`activation`='tanhh'"),
    "recurrent activation": (dict(recurrent_activation="no"), "`recurrent_activation`='no'"),
    "layout": (dict(layout="jax"), "`layout`.*'jax'"),
    "precision": (dict(precision="fp8"), "`precision`.*'fp8'"),
    "backend": (dict(backend="cuda"), "`backend`.*'cuda'"),
    "backend list": (dict(backend=["eager"]), r"`backend`.*\['eager'\]"),
}

TYPE_ERRORS = {
    "x kind": (dict(x=[[1.0]]), "`x`.*list"),
    "x integers": (dict(x=torch.zeros(B, T, I, dtype=torch.long)), "`x`.*int64"),
    "kernel kind": (dict(kernel=3.0), "`kernel`.*float"),
    "mask kind": (dict(mask=[True]), "`mask`.*list"),
    "lengths text": (dict(lengths="ab"), "`lengths`.*'ab'"),
    "lengths ragged": (dict(lengths=[[1], [2, 3]]), "`lengths`.*2, 3"),
    "input dropout kind": (dict(input_dropout=0.5), "`input_dropout`.*0.5"),
    "recurrent dropout kind": (dict(recurrent_dropout="abc"), "`recurrent_dropout`.*'abc'"),
    "lengths floats": (dict(lengths=torch.ones(B)), "`lengths`.*float32"),
    "state kind": (dict(initial_state=0), "`initial_state`.*int"),
    "torch bias": (dict(layout="torch", kernel=zeros(3 * U, I), recurrent_kernel=zeros(3 * U, U)), "`bias`.*pair"),
    "activation kind": (dict(activation=3), "`activation`=3"),
    "x sparse": (dict(x=torch.ones(B, T, I).to_sparse()), "`x`.*dense.*sparse"),
    "x nested": (dict(x=torch.nested.as_nested_tensor([torch.ones(T, I)] * B)), "`x`.*dense.*nested"),
    "kernel sparse": (dict(kernel=torch.ones(I, 3 * U).to_sparse()), "`kernel`.*dense.*sparse"),
    "flag text": (dict(reset_after="no"), "`reset_after`.*'no'"),
    "recompute text": (dict(recompute="x"), "`recompute`.*'x'"),
}


@pytest.mark.parametrize("changes, text", VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_value_errors(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tritongru.gru(**(make_arguments(Case()) | changes))


@pytest.mark.parametrize("changes, text", TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_type_errors(changes: dict, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        tritongru.gru(**(make_arguments(Case()) | changes))


@pytest.mark.parametrize("units", [0, -3])
def test_units_below_one(units: int) -> None:
    with pytest.raises(ValueError, match=f"units.*{units}"):
        check_units(units)
    with pytest.raises(ValueError, match="units"):
        tritongru.GRU(units)


@pytest.mark.parametrize("units", ["8", 2.0, None, True])
def test_units_of_another_type(units) -> None:
    with pytest.raises(TypeError, match="units"):
        check_units(units)


def test_the_same_errors_on_every_backend() -> None:
    for backend in ("eager", "aten", "reference"):
        with pytest.raises(ValueError, match="`kernel`"):
            tritongru.gru(**(make_arguments(Case()) | {"kernel": zeros(2, 3)}), backend=backend)
