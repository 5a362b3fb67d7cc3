"""Members that eager runs as one scan: against the same one after another, the oracle, and numerical gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tritongru import GRU, Bidirectional, compat, dispatch, gru
from tritongru.backends.eager import layout, members
from tritongru.backends.members import Group
from tritongru.call.problem import Inputs, Variant
from tritongru.tools.oracle.cases import Case, differentiated, make_arguments
from tritongru.tools.oracle.compare import compare_backend

F64 = torch.float64
PRECISE = dict(rtol=1e-10, atol=1e-11)


@pytest.fixture
def runs(monkeypatch) -> Iterator[list[str]]:
    """Which of the two passes were one scan of all members; short ones may be too."""
    found, forward, backward = [], members.run_members_forward, members.run_members_backward

    def run_forward(*arguments):
        found.append("forward")
        return forward(*arguments)

    def run_backward(*arguments):
        found.append("backward")
        return backward(*arguments)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(members, "LEAST_STEPS", 9)
    monkeypatch.setattr(members, "run_members_forward", run_forward)
    monkeypatch.setattr(members, "run_members_backward", run_backward)
    dispatch.forget()
    yield found
    dispatch.forget()


def several(reset_after: bool = True, drop: int = 0, gates: bool = False, bias: bool = True, **fields):
    """Return tensors for `tritongru::scan_members`, its group, and the inputs of each of three members."""
    T, B, I, U = 11, 2, 3, 5

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64).requires_grad_()

    shared, masks = leaf(B, T, 3 * U if gates else I).transpose(0, 1), None
    each = []
    for m in range(3):
        if drop:
            masks = ((torch.rand(drop, B, U) < 0.8).to(F64) * 1.25).requires_grad_()
        w, bias_x = (None, None) if gates else (leaf(I, 3 * U), leaf(3 * U) if bias else None)
        x = shared if m < 2 else (shared * 0.5).detach().requires_grad_()
        each.append(Inputs(x, w, bias_x, leaf(3 * U, U).t(), leaf(3 * U) if bias else None, leaf(B, U), drop=masks))
    each = [a._replace(**fields) for a in each]
    group = Group.of(each, [False, True, True])
    return group.pack(each), group, each, Variant(reset_after=reset_after)


VARIANTS = [
    dict(),
    dict(bias=False),
    dict(reset_after=False),
    dict(drop=1),
    dict(drop=3),
    dict(drop=1, reset_after=False),
    dict(drop=3, reset_after=False),
    dict(gates=True),
]


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("changes", [{}, dict(reset_gate_first=True), dict(gradient_clip=0.2)], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_one_scan_is_the_scans_of_each(runs, monkeypatch, options: dict, changes: dict, save: str) -> None:
    monkeypatch.setattr(layout, "CHUNK", 1)
    monkeypatch.setattr(layout, "CHUNK_ROWS", 6)  # three steps, and the last of two
    tensors, group, each, variant = several(**options)
    variant = variant._replace(**changes)
    out, last, *_ = torch.ops.tritongru.scan_members(tensors, *map(list, group), *variant, "ieee", save, "eager")
    pairs = [
        torch.ops.tritongru.scan(*a, *v, "ieee", save, "eager")[:2]
        for a, v in zip(each, group.variants(variant), strict=True)
    ]
    outs, lasts = map(torch.stack, zip(*pairs, strict=True))
    torch.testing.assert_close((out, last), (outs, lasts), **PRECISE)
    cotangents = torch.randn_like(out), torch.randn_like(last)
    found = torch.autograd.grad((out, last), tensors, cotangents, retain_graph=True)
    right = torch.autograd.grad((outs, lasts), tensors, cotangents, retain_graph=True)
    torch.testing.assert_close(found, right, **PRECISE)
    assert runs == ["forward", "backward"]
    # One result without a gradient, and one gradient that nobody asks for.
    for ours, theirs, cotangent in ((out, outs, cotangents[0]), (last, lasts, cotangents[1])):
        (found,) = torch.autograd.grad(ours, tensors[-1:], cotangent, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(theirs, tensors[-1:], cotangent, retain_graph=True)[0])


@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_opcheck(runs, save: str) -> None:
    tensors, group, _, variant = several(drop=3)
    arguments = tensors, *map(list, group), *variant, "ieee", save, "eager"
    torch.library.opcheck(torch.ops.tritongru.scan_members, arguments)
    tensors = [t.detach() for t in tensors]
    out, last, states, gates = torch.ops.tritongru.scan_members(tensors, *arguments[1:])
    rest = out, states, gates, torch.randn_like(out), torch.randn_like(last), [True] * len(tensors)
    torch.library.opcheck(torch.ops.tritongru.scan_members_backward, (tensors, *arguments[1:], *rest))
    assert {"forward", "backward"} == set(runs)


HEADS = [
    Case(3, 12, 3, 12, heads=4),
    Case(1, 12, 3, 12, "bfloat16", heads=3),
    Case(2, 12, 3, 12, "float16", heads=3, recompute=True, layout="torch"),
    Case(2, 12, 3, 12, "float64", heads=3, recurrent_dropouts=3, go_backwards=True, gates=True),
    Case(2, 12, 3, 12, heads=2, reset_after=False, recurrent_dropouts=1, activation="relu", use_bias=False),
]


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_heads_against_the_oracle(runs, case: Case) -> None:
    rows = compare_backend(case, "eager", torch.device("cpu"))
    assert {row.verdict for row in rows} == {"ok"}, rows
    assert {"forward", "backward"} == set(runs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64], ids=str)
def test_two_directions(runs, dtype: torch.dtype) -> None:
    layer = compat.GRU(3, 5, num_layers=2, bidirectional=True, backend="eager", dtype=dtype)
    x = torch.randn(12, 4, 3, dtype=dtype, requires_grad=True)
    rounding = {torch.float32: 2e-6, torch.bfloat16: 4e-2, F64: 1e-12}[dtype]
    with torch.no_grad():
        plain, state = layer(x)
    assert runs == ["forward"] * 2 and layer.last_decision.members == 2
    right, last = layer(x, backend="reference")
    torch.testing.assert_close((plain, state), (right, last), rtol=rounding, atol=rounding)
    outputs, _ = layer(x)
    leaves = [x, *layer.parameters()]
    found, expected = (torch.autograd.grad(y.float().square().sum(), leaves) for y in (outputs, right))
    assert runs == ["forward"] * 4 + ["backward"] * 2
    torch.testing.assert_close(found, expected, rtol=100 * rounding, atol=100 * rounding)


def test_keras_directions(runs) -> None:
    for sequences in (True, False):
        inner = GRU(5, return_sequences=sequences, return_state=True, input_size=3, backend="eager")
        layer, x = Bidirectional(inner), torch.randn(4, 12, 3)
        together = layer(x)
        assert runs.pop() == "forward" and not runs
        forward, backward = layer.forward_layer(x), layer.backward_layer(x)
        merged = torch.cat((forward[0], backward[0].flip(1) if sequences else backward[0]), -1)
        torch.testing.assert_close(together, [merged, forward[1], backward[1]])
        assert not runs


OTHERS = [
    (dict(), dict(lengths=torch.tensor([12, 0, 5, 7]))),
    (dict(), dict(resets=torch.arange(48).view(12, 4) % 5 == 0)),
    (dict(zoneout=0.3), dict()),
    (dict(layer_norm="joint"), dict()),
]


@pytest.mark.parametrize("options, given", OTHERS, ids=["mask", "resets", "zoneout", "norm"])
def test_what_is_not_one_scan(runs, options: dict, given: dict) -> None:
    layer, x = compat.GRU(3, 5, bidirectional=True, **options, dtype=F64), torch.randn(12, 4, 3, dtype=F64)
    torch.manual_seed(1)
    outputs, _ = layer(x, **given, backend="eager")
    torch.manual_seed(1)
    torch.testing.assert_close(outputs, layer(x, **given, backend="reference")[0], **PRECISE)
    assert not runs and layer.explain(x, **given, backend="eager").members == 1


def test_operators_that_are_not_one_scan(runs) -> None:
    """Under vmap nobody asks a signature: members that are masked, reset or held come to the operator as they are."""
    steps = torch.arange(22).view(11, 2) % 3 > 0
    for fields in (dict(mask=steps), dict(resets=steps), dict(keep=torch.rand(11, 2, 5, dtype=F64))):
        tensors, group, each, variant = several(**fields)
        out, *_ = torch.ops.tritongru.scan_members(tensors, *map(list, group), *variant, "ieee", "gates", "eager")
        alone = [
            torch.ops.tritongru.scan(*a, *v, "ieee", "gates", "eager")[0]
            for a, v in zip(each, group.variants(variant), strict=True)
        ]
        assert torch.equal(out, torch.stack(alone)) and not runs


def test_an_ensemble_and_a_map_of_its_gradients(runs) -> None:
    """A map over gradients of the outputs makes more members than there were: what is saved is each one's own."""
    arguments = make_arguments(Case(2, 12, 3, 5, "float64"))
    x, bias, initial, *weights = (
        arguments[name] for name in ("x", "bias", "initial_state", "kernel", "recurrent_kernel")
    )
    kernels = [torch.stack((w, 0.5 * w, -w)).requires_grad_() for w in weights]

    def call(kernel, recurrent, backend="eager", **options):
        return gru(x, kernel, recurrent, bias, initial, backend=backend, **options)[0]

    found = vmap(call)(*kernels)
    right = torch.stack([call(*(k[i] for k in kernels), backend="reference") for i in range(3)])
    torch.testing.assert_close(found, right, **PRECISE)
    ours, theirs = (torch.autograd.grad(y.square().sum(), kernels) for y in (found, right))
    torch.testing.assert_close(ours, theirs, **PRECISE)
    assert runs[0] == "forward" and "backward" in runs
    jacobian = torch.func.jacrev(lambda *w: vmap(call)(*w)[:, :, -1].sum((0, 1)), argnums=(0, 1))(*kernels)
    expected = torch.autograd.functional.jacobian(
        lambda *w: torch.stack([call(*(k[i] for k in w), backend="reference") for i in range(3)])[:, :, -1].sum((0, 1)),
        tuple(kernels),
    )
    torch.testing.assert_close(jacobian, expected, **PRECISE)


def test_gradcheck(runs) -> None:
    arguments = make_arguments(Case(1, 9, 2, 4, "float64", heads=2, recurrent_dropouts=1))
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}

    def function(*values: Tensor):
        return gru(**(arguments | dict(zip(leaves, values, strict=True))), backend="eager")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))
    assert {"forward", "backward"} == set(runs)


def test_a_member_knows_nothing_of_the_others(runs) -> None:
    """A row or a member of NaN changes no bit of what any other row and member gives."""
    (*_, each, variant), results = several(), []
    first, *others = (
        a._replace(**{name: t.detach() for name, t in a._asdict().items() if t is not None}) for a in each
    )
    for x in (first.x, torch.where(torch.tensor([True, False])[:, None], torch.nan, first.x)):
        alike = [first._replace(x=x), *others]
        results.append(members.run_members_forward(alike, [variant] * 3, True))
    for clean, other in zip(*results, strict=True):
        if clean.numel():
            assert torch.equal(clean[1:], other[1:])
            rows = (lambda v: v[0, 1]) if clean.dim() == 3 else (lambda v: v[0, :, 1])
            assert torch.equal(rows(clean), rows(other)) and other[0].isnan().any()


def test_sizes(runs, monkeypatch) -> None:
    """Large members, few steps and no rows run one after another."""
    for T, B, U, many in ((9, 4, 5, 2), (8, 4, 5, 1), (12, 0, 5, 1), (9, 5, 5, 1), (9, 1, 257, 1)):
        layer = compat.GRU(3, U, bidirectional=True, backend="eager")
        layer(torch.randn(T, B, 3))
        assert layer.last_decision.members == many and len(runs) == many - 1
        runs.clear()
    assert members.is_faster(8, 9, 16, 32) and not members.is_faster(16, 9, 17, 32)
    layer, x = compat.GRU(3, 5, bidirectional=True, backend="eager"), torch.randn(9, 4, 3)
    for threads, two, eight in ((1, 2, True), (2, 1, True), (3, 1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert layer.explain(x).members == two and members.is_faster(8, 9, 4, 5) == eight
