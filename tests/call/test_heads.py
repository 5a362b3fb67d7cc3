"""Several heads: against N separate GRUs, torch's own among them, against the block-diagonal oracle, and the layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import tritongru
from tritongru import GRU, Stream, UnsupportedError, compat, gru, scan
from tritongru.environment import reasons_against_numba
from tritongru.reference import gru_reference
from tritongru.tools.oracle.cases import Case, differentiated, make_arguments
from tritongru.tools.oracle.compare import compare

F64 = torch.float64
PRECISE = dict(rtol=1e-10, atol=1e-11)
GRID = list(itertools.product(("keras", "torch"), (True, False), (2, 3)))


def results(function, arguments: dict, **options) -> dict[str, Tensor]:
    """Return outputs, state and the gradient of every tensor by name."""
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}
    call = dict(arguments) | {name.partition("[")[0]: value for name, value in leaves.items()}
    if "bias[0]" in leaves:
        call["bias"] = (leaves["bias[0]"], leaves["bias[1]"])
    outputs, state = function(**call, **options)
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=F64) for v in (outputs, state)]
    found = torch.autograd.grad((outputs, state), list(leaves.values()), cotangents)
    return {"outputs": outputs, "state": state, **dict(zip(leaves, found, strict=True))}


def by_blocks(**arguments):
    """The oracle: one matrix with zeros between the blocks."""
    if "gates" in arguments:
        arguments |= {"x": arguments.pop("gates"), "kernel": None}
    return gru_reference(**{name: value for name, value in arguments.items() if name not in ("precision", "recompute")})


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize("layout, reset_after, heads", GRID)
def test_equals_the_block_diagonal_oracle(layout: str, reset_after: bool, heads: int, backend: str) -> None:
    for seed, (mask, resets, drops, zoneout) in enumerate(itertools.product((0, 1), (0, 1), (0, 3), (0, 1))):
        case = Case(
            3, 5, 4, 6, "float64", seed, layout=layout, reset_after=reset_after, heads=heads, mask=bool(mask),
            resets=bool(resets), reset_state=("rows", "steps", "initial")[seed % 3] if resets else None,
            recurrent_dropouts=drops, input_dropouts=(0, 3, 1)[seed % 3], zoneout=bool(zoneout),
            go_backwards=seed % 2 == 1, time_major=seed % 4 == 2, gates=seed % 5 == 4, use_bias=seed % 6 > 0,
            gradient_clip=0.5 if seed % 7 == 3 else None, recompute=seed % 3 == 0,
        )  # fmt: skip
        arguments = make_arguments(case)
        expected = results(by_blocks, arguments)
        for name, value in results(scan if case.gates else gru, arguments, backend=backend).items():
            assert torch.allclose(value, expected[name], **PRECISE), f"{case}: {name}"


def test_equals_separate_layers_of_torch() -> None:
    """The definition: N GRUs side by side, their gates' rows interleaved by whole units."""
    N, K, I = 3, 2, 4
    parts = [nn.GRU(I, K, batch_first=True, dtype=F64) for _ in range(N)]
    layer = compat.GRU(I, N * K, batch_first=True, heads=N, dtype=F64)

    def interleaved(name: str) -> Tensor:
        return torch.stack([getattr(p, name).unflatten(0, (3, K)) for p in parts], dim=1).flatten(0, 2)

    names = ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0")
    state = {name: interleaved(name) for name in names}
    layer.load_state_dict(state | {"weight_hh_heads_l0": torch.stack([p.weight_hh_l0 for p in parts])})
    x, hx = torch.randn(2, 5, I, dtype=F64), torch.randn(1, 2, N * K, dtype=F64)
    output, h_n = layer(x, hx)
    pairs = [p(x, h.contiguous()) for p, h in zip(parts, hx.chunk(N, dim=-1), strict=True)]
    torch.testing.assert_close(output, torch.cat([y for y, _ in pairs], -1), **PRECISE)
    torch.testing.assert_close(h_n, torch.cat([h for _, h in pairs], -1), **PRECISE)


def test_one_head_is_no_head() -> None:
    arguments = make_arguments(Case(dtype="float64"))
    whole = gru(**arguments)
    single = gru(**(arguments | {"recurrent_kernel": arguments["recurrent_kernel"][None]}))
    torch.testing.assert_close(single, whole, **PRECISE)


def test_gradcheck() -> None:
    arguments = make_arguments(Case(2, 3, 2, 4, "float64", heads=2, mask=True))
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}

    def function(*values):
        return gru(**(arguments | dict(zip(leaves, values, strict=True))), backend="eager")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


def test_every_backend_runs_it_that_runs_one_head() -> None:
    rows = compare(2, 3, 6, dtype="float32", backends=["numba", "eager", "aten", "reference"], heads=3)
    there = {"eager", "aten", "reference"} | (set() if reasons_against_numba() else {"numba"})
    assert {row.backend for row in rows if row.verdict == "ok"} == there and "FAIL" not in {row.verdict for row in rows}
    with pytest.raises(UnsupportedError, match="mask"):
        gru(**make_arguments(Case(heads=3, mask=True)), backend="aten")


BAD = [
    (dict(recurrent_kernel=torch.ones(3, 3, 8)), r"`recurrent_kernel` of several heads must have shape \(N,U/N,3U/N\)"),
    (dict(recurrent_kernel=torch.ones(0, 3, 9)), "several heads"),
    (dict(recurrent_kernel=torch.ones(2, 3, 9)), r"`kernel` must have shape \(5, 18\)"),
    (dict(initial_state=torch.ones(3, 3)), r"`initial_state` must have shape \(B,U\) = \(3, 9\)"),
    (dict(bias=torch.ones(2, 9)), r"`bias` must have shape \(2, 27\)"),
    (dict(zoneout=torch.ones(3, 7, 3)), r"`zoneout` must be broadcastable to \(3, 7, 9\)"),
    (dict(layer_norm="joint"), "`layer_norm` was given with 3 heads"),
]


@pytest.mark.parametrize("changes, text", BAD, ids=[text[:40] for _, text in BAD])
def test_bad_input_is_named(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gru(**(make_arguments(Case(heads=3)) | changes))


def test_the_keras_layer() -> None:
    layer = GRU(6, heads=3, return_sequences=True, recurrent_initializer="orthogonal", recurrent_constraint="max_norm",
                recurrent_regularizer="l2", zoneout=0.1, dtype=F64).eval()  # fmt: skip
    x = torch.randn(2, 5, 4, dtype=F64)
    outputs = layer(x)
    assert layer.recurrent_kernel.shape == (3, 2, 6)
    eye = torch.eye(2, dtype=F64)
    for block in layer.recurrent_kernel:
        torch.testing.assert_close(block @ block.t(), eye)
    assert not torch.equal(*layer.recurrent_kernel[:2])
    torch.testing.assert_close(layer.regularization_loss(), 0.01 * layer.recurrent_kernel.square().sum())
    stream = Stream(layer)
    torch.testing.assert_close(torch.stack([stream.step(x[:, t]) for t in range(5)], 1), outputs, **PRECISE)
    again = GRU.from_config(layer.get_config()).eval()
    again.build(4)
    again.set_weights(layer.get_weights())
    assert torch.equal(again(x), outputs) and again.heads == 3
    with torch.no_grad():
        layer.recurrent_kernel.mul_(10)
    layer.apply_constraints()
    torch.testing.assert_close(layer.recurrent_kernel.norm(dim=1), torch.full((3, 6), 2.0, dtype=F64))
    assert tritongru.Bidirectional(layer).backward_layer.heads == 3


def test_the_torch_layer() -> None:
    layer = compat.GRU(3, 4, 2, bidirectional=True, heads=2)
    assert {n for n in layer.state_dict() if "hh" in n and "weight" in n} == {
        f"weight_hh_heads_{suffix}" for suffix in ("l0", "l0_reverse", "l1", "l1_reverse")
    }
    assert layer.weight_hh_heads_l0.shape == (2, 6, 2) and layer.weight_hh_heads_l0.abs().max() <= 2**-0.5
    assert "heads=2" in repr(layer) and len(layer.all_weights) == 4
    layer(torch.randn(5, 2, 3), lengths=torch.tensor([5, 2]))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    other = compat.GRU(3, 4, 2, bidirectional=True, heads=2)
    other.load_state_dict(layer.state_dict())
    traced = torch.compile(other, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(traced(x)[0], layer(x)[0])


@pytest.mark.parametrize("make", [lambda **o: GRU(4, **o), lambda **o: compat.GRU(3, 4, **o)], ids=["keras", "torch"])
def test_bad_heads_are_named(make) -> None:
    for heads, error in ((3, ValueError), (0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="`heads` must"):
            make(heads=heads)
    with pytest.raises(ValueError, match="`layer_norm`='joint' was given with heads=2"):
        make(heads=2, layer_norm="joint")


def test_files_that_cannot_hold_them_say_so(tmp_path) -> None:
    from tritongru.tools.weight_files import convert

    layer = GRU(4, input_size=3, heads=2)
    for call in (
        lambda: convert.save_keras(layer, tmp_path / "layer.h5"),
        lambda: convert.to_torch(layer),
        lambda: convert.from_torch(compat.GRU(3, 4, heads=2)),
    ):
        with pytest.raises(ValueError, match="heads=2"):
            call()
    assert not list(tmp_path.iterdir())
