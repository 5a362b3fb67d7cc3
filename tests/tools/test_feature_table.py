"""docs/peers.md: every line of ours is called here, and says no more than what runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tritongru
from tritongru import GRU, compat, gru, scan
from tritongru.tools.oracle.cases import Case, make_arguments

TABLE = Path(__file__).parents[2] / "docs" / "peers.md"
NAMED = "; numba, eager, reference and, where one program holds a row, triton"


def run(**fields):
    case = Case(2, 3, 2, 4, **fields)
    return [(scan if case.gates else gru)(**make_arguments(case), backend=b) for b in ("eager", "reference")]


def layers(**options):
    x = torch.randn(2, 3, 5)
    return GRU(4, **options)(x), compat.GRU(5, 4, batch_first=True, **options)(x)


def differentiate_twice():
    x = torch.randn(1, 3, 2, requires_grad=True)
    (first,) = torch.autograd.grad(GRU(4)(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()


def map_over_weights():
    members = [compat.GRU(5, 4) for _ in range(2)]
    stacked, _ = torch.func.stack_module_state(members)
    call = torch.func.vmap(lambda p, x: torch.func.functional_call(members[0], (p,), (x,)), in_dims=(0, None))
    call(stacked, torch.randn(3, 2, 5))
    assert members[0].last_decision.backend in ("eager", "numba")
    loss = lambda p, x: torch.func.functional_call(members[0], (p,), (x,))[0].sum()  # noqa: E731
    torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, torch.randn(3, 2, 5))
    assert members[0].last_decision.backend in ("eager", "numba")


def both_directions():
    """tests/kernels/test_resident.py counts the launches."""
    x = torch.randn(2, 3, 5)
    return compat.GRU(5, 4, bidirectional=True)(x), tritongru.Bidirectional(GRU(4))(x)


def stacked_layers():
    """tests/torch/test_stacking.py runs them in chunks."""
    output, h_n = compat.GRU(5, 4, num_layers=2)(torch.randn(3, 2, 5))
    assert output.shape == (3, 2, 4) and h_n.shape == (2, 2, 4)


def export():
    pytest.importorskip("onnxscript")
    from tritongru.tools import onnx

    assert onnx.translation_table()


FEATURES = {
    "gates given, without the input's product": lambda: run(gates=True),
    "heads, block-diagonal recurrent weights": lambda: (run(heads=2), layers(heads=2)),
    "zoneout": lambda: (run(zoneout=True), layers(zoneout=0.5)),
    "layer normalisation, each side": lambda: (run(layer_norm="separate"), layers(layer_norm="separate")),
    "layer normalisation, both sides together": lambda: (run(layer_norm="joint"), layers(layer_norm="joint")),
    "clip of the state's gradient": lambda: (run(gradient_clip=1.0), layers(gradient_clip=1.0)),
    "`vmap`, `grad` and both over weights and inputs on a fast backend": map_over_weights,
    "both directions in one launch": both_directions,
    "stacked layers that overlap on a GPU": stacked_layers,
    "resets inside a sequence, with values": lambda: run(resets=True, reset_state="steps"),
    "lengths without packing, zero allowed": lambda: run(lengths=True),
    "recurrent dropout": lambda: (run(recurrent_dropouts=1), layers(recurrent_dropout=0.5)),
    "gates rebuilt in the backward pass": lambda: run(recompute=True),
    "second derivatives": differentiate_twice,
    "the standard ONNX operator": export,
}
# tests/interpreted/test_norm_kernels.py runs the kernels.
NOT_ATEN = {
    "layer normalisation, each side": dict(layer_norm="separate"),
    "layer normalisation, both sides together": dict(layer_norm="joint"),
}


def ours() -> dict[str, str]:
    """Return what the first table says of each feature of ours."""
    first = TABLE.read_text().split("\n\n")
    rows = next(part for part in first if part.startswith("| feature | tritongru")).splitlines()[2:]
    return {cells[0].strip(): cells[1].strip() for cells in (row.strip("|").split("|") for row in rows)}


def test_the_table_and_these_tests_have_the_same_lines() -> None:
    assert ours().keys() == FEATURES.keys()
    assert {name for name, text in ours().items() if text.endswith(NAMED)} == NOT_ATEN.keys()


@pytest.mark.parametrize("feature", FEATURES)
def test_ours(feature: str) -> None:
    FEATURES[feature]()


@pytest.mark.parametrize("feature", NOT_ATEN)
def test_where_the_table_names_backends_the_other_refuses(feature: str) -> None:
    arguments = make_arguments(Case(2, 3, 2, 4, **NOT_ATEN[feature]))
    named = ["numba"] if find_spec("numba") else []
    for backend in (*named, "eager", "reference"):
        gru(**arguments, backend=backend)
    with pytest.raises(tritongru.UnsupportedError, match=list(NOT_ATEN[feature])[0]):
        gru(**arguments, backend="aten")
