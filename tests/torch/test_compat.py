"""`tritongru.compat.GRU` against `torch.nn.GRU`, and what it does beyond it."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import tritongru
from tritongru.call.errors import UnsupportedError
from tritongru.compat import GRU
from tritongru.environment import is_interpreted

F64 = torch.float64
SHAPES = [(3, 7, 5, 9), (1, 1, 1, 1), (1, 6, 2, 3), (4, 1, 3, 5)]
IDS = ["B{}-T{}-I{}-U{}".format(*s) for s in SHAPES]


def pair(*args, **kwargs) -> tuple[nn.GRU, GRU]:
    """Return a torch.nn.GRU and this package's with the same weights, in float64."""
    theirs = nn.GRU(*args, dtype=F64, **kwargs)
    ours = GRU(*args, dtype=F64, **kwargs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def gradients(layer, x, hx, **kwargs):
    """Return outputs, and the gradients of a random cotangent by name."""
    x = x.clone().requires_grad_()
    hx = hx if hx is None else hx.clone().requires_grad_()
    output, h_n = layer(x, hx, **kwargs)
    data = output.data if isinstance(output, PackedSequence) else output
    generator = torch.Generator().manual_seed(1)
    d_out = torch.randn(data.shape, dtype=data.dtype, generator=generator)
    d_last = torch.randn(h_n.shape, dtype=data.dtype, generator=generator)
    layer.zero_grad()
    torch.autograd.backward([data, h_n], [d_out, d_last])
    found = {name: p.grad.clone() for name, p in layer.named_parameters()}
    found["input"] = x.grad
    if hx is not None:
        found["hx"] = hx.grad
    return data.detach(), h_n.detach(), found


def assert_same(a, b):
    torch.testing.assert_close(a[0], b[0], msg=lambda m: f"output: {m}")
    torch.testing.assert_close(a[1], b[1], msg=lambda m: f"h_n: {m}")
    assert a[2].keys() == b[2].keys()
    for name in a[2]:
        torch.testing.assert_close(a[2][name], b[2][name], msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize(("B", "T", "I", "U"), SHAPES, ids=IDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize(("bias", "batch_first", "with_hx"), [(True, False, True), (False, True, False)])
def test_outputs_and_gradients(B, T, I, U, layers, bidirectional, bias, batch_first, with_hx):
    theirs, ours = pair(I, U, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=F64)
    hx = torch.randn(layers * (1 + bidirectional), B, U, dtype=F64) if with_hx else None
    assert_same(gradients(ours, x, hx), gradients(theirs, x, hx))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_unbatched(batch_first, bidirectional):
    theirs, ours = pair(3, 5, 2, batch_first=batch_first, bidirectional=bidirectional)
    x, hx = torch.randn(6, 3, dtype=F64), torch.randn(2 * (1 + bidirectional), 5, dtype=F64)
    assert_same(gradients(ours, x, hx), gradients(theirs, x, hx))
    assert_same(gradients(ours, x, None), gradients(theirs, x, None))


@pytest.mark.parametrize("backend", ["aten", "eager", "reference"])
def test_backends_agree(backend):
    theirs, ours = pair(3, 5, 2, bidirectional=True)
    x, hx = torch.randn(6, 2, 3, dtype=F64), torch.randn(4, 2, 5, dtype=F64)
    assert_same(gradients(ours, x, hx, backend=backend), gradients(theirs, x, hx))
    assert ours.last_decision.backend == backend


@pytest.mark.skipif(not (is_interpreted() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("extra", ["plain", "packed", "resets", "lengths"])
def test_triton_agrees_with_the_reference(extra):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = GRU(3, 5, 2, bidirectional=True, device=device)
    x, hx = torch.randn(6, 3, 3, device=device), torch.randn(4, 3, 5, device=device)
    kwargs = {}
    if extra in ("resets", "lengths"):
        kwargs["resets"] = torch.rand(6, 3, device=device) < 0.4
    if extra == "lengths":
        kwargs["lengths"] = torch.tensor([0, 3, 6], device=device)
    results = []
    for backend in ("triton", "reference"):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        given = pack_padded_sequence(leaf, [4, 6, 1], enforce_sorted=False) if extra == "packed" else leaf
        output, h_n = layer(given, hx, backend=backend, **kwargs)
        data = output.data if extra == "packed" else output
        (data.square().sum() + h_n.pow(3).sum()).backward()
        assert layer.last_decision.backend == backend
        results.append([data.detach(), h_n.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("lengths", [[5, 5, 3, 1], [4, 4, 4, 4], [1, 1, 1, 1]])
def test_packed(enforce_sorted, bidirectional, with_hx, lengths):
    theirs, ours = pair(3, 5, 2, bidirectional=bidirectional)
    if not enforce_sorted:
        lengths = lengths[1:] + lengths[:1]
        lengths.reverse()
    x = torch.randn(max(lengths), 4, 3, dtype=F64)
    hx = torch.randn(2 * (1 + bidirectional), 4, 5, dtype=F64) if with_hx else None
    packed = [pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)] * 2
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, lengths, enforce_sorted=enforce_sorted)
        output, h_n = layer(packed, hx)
        layer.zero_grad()
        padded, _ = pad_packed_sequence(output)
        (padded.square().sum() + h_n.pow(3).sum()).backward()
        results.append((output, h_n, leaf.grad, [p.grad for p in layer.parameters()]))
    (a, a_n, a_x, a_p), (b, b_n, b_x, b_p) = results
    for field in ("data", "batch_sizes", "sorted_indices", "unsorted_indices"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field), msg=lambda m, f=field: f"{f}: {m}")
    torch.testing.assert_close([a_n, a_x, *a_p], [b_n, b_x, *b_p])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_equal_packing(batch_first, bidirectional):
    theirs, ours = pair(3, 5, 2, batch_first=batch_first, bidirectional=bidirectional)
    lengths = torch.tensor([2, 6, 1, 4])
    x = torch.randn((4, 6, 3) if batch_first else (6, 4, 3), dtype=F64)
    hx = torch.randn(2 * (1 + bidirectional), 4, 5, dtype=F64)
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    expected, expected_n = theirs(packed, hx)
    output, h_n = ours(x, hx, lengths=lengths)
    torch.testing.assert_close(output, pad_packed_sequence(expected, batch_first)[0])
    torch.testing.assert_close(h_n, expected_n)


def test_a_length_of_zero_keeps_hx_and_gives_no_gradient():
    _, ours = pair(3, 5, 2, bidirectional=True)
    x, hx = torch.randn(4, 2, 3, dtype=F64, requires_grad=True), torch.randn(4, 2, 5, dtype=F64)
    output, h_n = ours(x, hx, lengths=torch.tensor([0, 4]))
    assert torch.equal(h_n[:, 0], hx[:, 0]) and not output[:, 0].any()
    (output.sum() + h_n.sum()).backward()
    assert not x.grad[:, 0].any() and x.grad[:, 1].any()


@pytest.mark.bits
@pytest.mark.parametrize("filler", [100.0, float("nan")])
@pytest.mark.parametrize("with_resets", [False, True], ids=["lengths", "resets"])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_what_lies_in_the_padding_does_not_matter(backend, with_resets, filler):
    """Two calls alike in all but the padding, so that equal bits follow on every processor."""
    _, ours = pair(3, 5, 2, bidirectional=True)
    ours.backend = backend
    x, lengths = torch.randn(5, 2, 3, dtype=F64), torch.tensor([2, 5])
    found = []
    for poison in (False, True):
        resets = torch.zeros(5, 2, dtype=torch.bool)
        resets[4, 1] = True
        resets[3, 0] = poison
        given = x.index_put((torch.arange(2, 5), torch.tensor(0)), torch.tensor(filler, dtype=F64)) if poison else x
        found.append(gradients(ours, given, None, lengths=lengths, resets=resets if with_resets else None))
    (output, h_n, by_name), (poisoned, poisoned_h_n, poisoned_by_name) = found
    assert torch.equal(output, poisoned) and torch.equal(h_n, poisoned_h_n)
    for name, value in by_name.items():
        assert torch.equal(value, poisoned_by_name[name]), name


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_resets_equal_separate_calls(bidirectional, backend):
    theirs, ours = pair(3, 5, 1, bidirectional=bidirectional)
    deep_theirs, deep = pair(3, 5, 2, bidirectional=bidirectional)
    T, cuts = 9, [0, 3, 4, 9]
    x = torch.randn(T, 2, 3, dtype=F64)
    resets = torch.zeros(T, 2, dtype=torch.bool)
    resets[[3, 4]] = True
    for a, b in ((theirs, ours), (deep_theirs, deep)):
        output, _ = b(x, resets=resets, backend=backend)
        parts = [a(x[i:j])[0] for i, j in itertools.pairwise(cuts)]
        torch.testing.assert_close(output, torch.cat(parts))
    leaf = x.clone().requires_grad_()
    deep(leaf, resets=resets, backend=backend)[0][3:4].sum().backward()
    assert leaf.grad[3].any() and not leaf.grad[:3].any() and not leaf.grad[4:].any()


def test_hx_enters_the_first_segment_forwards_and_the_last_one_backwards():
    theirs, ours = pair(3, 5, bidirectional=True)
    x, hx = torch.randn(5, 2, 3, dtype=F64), torch.randn(2, 2, 5, dtype=F64)
    resets = torch.zeros(5, 2, dtype=torch.int64)
    resets[2] = 1
    output, h_n = ours(x, hx, resets=resets)
    first = theirs(x[:2], torch.stack((hx[0], torch.zeros_like(hx[0]))))
    last = theirs(x[2:], torch.stack((torch.zeros_like(hx[1]), hx[1])))
    torch.testing.assert_close(output, torch.cat((first[0], last[0])))
    torch.testing.assert_close(h_n, torch.stack((last[1][0], first[1][1])))


def test_resets_follow_the_axes_of_the_input():
    ours = GRU(3, 5, bidirectional=True)
    first = GRU(3, 5, bidirectional=True, batch_first=True)
    first.load_state_dict(ours.state_dict())
    x, resets = torch.randn(6, 1, 3), torch.rand(6, 1) < 0.4
    expected = ours(x, resets=resets)[0]
    torch.testing.assert_close(first(x.transpose(0, 1), resets=resets.t())[0].transpose(0, 1), expected)
    torch.testing.assert_close(ours(x[:, 0], resets=resets[:, 0])[0], expected[:, 0])


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_empty(T, B):
    ours = GRU(3, 5, 2, bidirectional=True)
    x, hx = torch.randn(T, B, 3, requires_grad=True), torch.randn(4, B, 5)
    output, h_n = ours(x, hx)
    assert output.shape == (T, B, 10) and torch.equal(h_n, hx)
    (output.sum() + h_n.sum()).backward()
    assert all(not p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize(("bias", "bidirectional", "layers"), [(True, True, 2), (False, False, 1)])
def test_state_dict_both_ways(bias, bidirectional, layers):
    theirs = nn.GRU(3, 5, layers, bias=bias, bidirectional=bidirectional)
    ours = GRU(3, 5, layers, bias=bias, bidirectional=bidirectional)
    assert isinstance(ours, nn.RNNBase)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(nn.GRU(4, 5, layers, bias=bias, bidirectional=bidirectional).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key|Missing key"):
        ours.load_state_dict(nn.GRU(3, 5, layers + 1, bias=bias, bidirectional=bidirectional).state_dict())


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(3)
    theirs = nn.GRU(3, 5, 2, bidirectional=True)
    torch.manual_seed(3)
    ours = GRU(3, 5, 2, bidirectional=True)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_dropout_between_layers(p):
    ours = GRU(4, 6, 2, dropout=p)
    x = torch.randn(5, 3, 4)
    ours.train()
    first, second = ours(x)[0], ours(x)[0]
    assert torch.equal(first, second) == (p in (0.0, 1.0))
    if p == 1.0:  # all that reaches the second layer is zero, so the input no longer matters
        torch.testing.assert_close(first, ours(torch.randn(5, 3, 4))[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])
    theirs = nn.GRU(4, 6, 2, dropout=p).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_the_last_layer_is_not_dropped(backend):
    output, h_n = GRU(3, 5, 2, dropout=0.9, backend=backend)(torch.randn(7, 4, 3))
    assert output.ne(0).all() and torch.equal(output[-1], h_n[-1])


def test_dropout_follows_the_seed():
    ours = GRU(4, 6, 2, dropout=0.5, recurrent_dropout=0.3)
    x = torch.randn(5, 3, 4)
    torch.manual_seed(7)
    first = ours(x)[0]
    torch.manual_seed(7)
    assert torch.equal(first, ours(x)[0])


def test_recurrent_dropout_of_one_cuts_the_state_from_the_gates():
    ours = GRU(3, 5, recurrent_dropout=1.0)
    x = torch.randn(1, 2, 3)
    trained = ours(x, torch.ones(1, 2, 5))[0]
    i_r, i_z, i_n = (x[0] @ ours.weight_ih_l0.t() + ours.bias_ih_l0).chunk(3, 1)
    b_r, b_z, b_n = ours.bias_hh_l0.chunk(3)
    z = torch.sigmoid(i_z + b_z)
    n = torch.tanh(i_n + torch.sigmoid(i_r + b_r) * b_n)
    torch.testing.assert_close(trained[0], z + (1 - z) * n)
    assert not torch.equal(trained, ours.eval()(x, torch.ones(1, 2, 5))[0])


@pytest.mark.parametrize("kwargs", [
    dict(dropout=-0.1), dict(dropout=1.1), dict(dropout=True), dict(hidden_size=0), dict(input_size=0),
    dict(num_layers=0), dict(hidden_size=2.5), dict(input_size="3"), dict(bias=1), dict(batch_first=0),
    dict(proj_size=2), dict(proj_size=0),
], ids=str)  # fmt: skip
def test_a_wrong_constructor_is_refused_as_torch_does(kwargs):
    arguments = {"input_size": 3, "hidden_size": 5, **kwargs}
    try:
        nn.GRU(**arguments)
    except Exception as error:  # whatever torch says, the same is to be said
        theirs = error
    else:
        GRU(**arguments)
        pytest.skip(f"torch {torch.__version__} takes it, and so does this")
    with pytest.raises(type(theirs)) as ours:
        GRU(**arguments)
    assert str(ours.value) == str(theirs)


def test_dropout_with_one_layer_warns():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        GRU(3, 5, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GRU(3, 5, 2, dropout=0.5)


@pytest.mark.parametrize(("x", "hx"), [
    ((4, 2, 3, 1), None), ((3,), None), ((4, 2, 7), None), ((4, 7), None), ((4, 2, 3), (1, 3, 5)),
    ((4, 2, 3), (2, 2, 5)), ((4, 2, 3), (1, 2, 6)), ((4, 2, 3), (2, 5)), ((4, 3), (1, 1, 5)), ((4, 3), (2, 5)),
], ids=str)  # fmt: skip
def test_a_wrong_call_is_refused_as_torch_does(x, hx):
    theirs, ours = nn.GRU(3, 5), GRU(3, 5)
    arguments = (torch.randn(x), None if hx is None else torch.randn(hx))
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(*arguments)
    with pytest.raises(type(expected.value)) as found:
        ours(*arguments)
    assert str(found.value) == str(expected.value)


def test_a_wrong_dtype_device_or_argument_is_named():
    ours = GRU(3, 5)
    x = torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match=r"input dtype \(torch.float64\) does not match weight dtype"):
        ours(x.double())
    for hx in ([torch.randn(2, 5)], np.zeros((1, 2, 5))):
        with pytest.raises(TypeError, match=f"hx must be a torch.Tensor, got {type(hx).__name__}"):
            ours(x, hx)
    for layout in (torch.jagged, torch.strided):
        with pytest.raises(TypeError, match="nested tensor: pass the padded one with `lengths`"):
            ours(torch.nested.nested_tensor([x[:, 0], x[:2, 1]], layout=layout))
    with pytest.raises(ValueError, match="hx must have the dtype"):
        ours(x, torch.randn(1, 2, 5, dtype=F64))
    with pytest.raises(RuntimeError, match="hidden tensor at meta"):
        ours(x, torch.randn(1, 2, 5, device="meta"))
    with pytest.raises(RuntimeError, match="parameter tensor at cpu"):
        ours(x.to("meta"))
    with pytest.raises(TypeError, match="PackedSequence, got list"):
        ours([x])
    with pytest.raises(ValueError, match=r"`lengths` must lie in 0..4"):
        ours(x, lengths=torch.tensor([1, 5]))
    with pytest.raises(ValueError, match=r"`lengths` must have shape"):
        ours(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"`resets` must be a tensor of shape \(T,B\) = \(4, 2\), got \(2, 4\)"):
        ours(x, resets=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="`lengths` was given with a PackedSequence"):
        ours(pack_padded_sequence(x, [4, 2]), lengths=torch.tensor([4, 2]))
    with pytest.raises(ValueError, match="`lengths` needs a batched"):
        ours(x[:, 0], lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="`backend` must be one of"):
        GRU(3, 5, backend="cudnn")
    with pytest.raises(ValueError, match="`recurrent_dropout` must be"):
        GRU(3, 5, recurrent_dropout=2)


def test_the_meta_device_gives_shapes():
    ours = GRU(3, 5, 2, bidirectional=True, device="meta")
    output, h_n = ours(torch.randn(4, 2, 3, device="meta"), lengths=torch.tensor([4, 1]))
    assert output.shape == (4, 2, 10) and h_n.shape == (4, 2, 5) and output.is_meta


def test_explain_and_a_named_backend():
    ours = GRU(3, 5, 2, bidirectional=True)
    x, lengths = torch.randn(4, 2, 3), torch.tensor([4, 2])
    decision = ours.explain(x, lengths=lengths)
    ours(x, lengths=lengths)
    assert decision == ours.last_decision and "aten" in decision.rejected
    assert ours.explain(pack_padded_sequence(x, [4, 2])) == decision
    assert tritongru.explain(ours, x, lengths=lengths) == decision
    with pytest.raises(TypeError, match="no `mask`"):
        tritongru.explain(ours, x, lengths[:, None])
    with pytest.raises(UnsupportedError, match="mask or lengths given"):
        ours(x, lengths=lengths, backend="aten")
    with pytest.raises(UnsupportedError, match="mask or lengths given"):
        GRU(3, 5, backend="aten")(x, lengths=lengths)
