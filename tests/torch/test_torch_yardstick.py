"""What torch's own tests ask of nn.GRU (test_nn.py, the module inputs, the packed-sequence tests), asked of compat.GRU.

Written anew; docs/torch.md lists which test here stands for which of theirs.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from test_compat import assert_same, gradients, pair
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from tritongru.compat import GRU

F64 = torch.float64


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_module_inputs(bias, batch_first, bidirectional):
    options = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    theirs, ours = pair(2, 2, 2, **options)
    x = torch.randn(3, 2, dtype=F64)
    assert_same(gradients(ours, x, None), gradients(theirs, x, None))
    for layer in (theirs, ours):
        layer.eval()
    packed = pack_padded_sequence(torch.randn(5, 2, 2, dtype=F64), [5, 3])
    for a, b in zip(ours(packed)[0][:2], theirs(packed)[0][:2], strict=True):
        torch.testing.assert_close(a, b)
    theirs, ours = pair(2, 3, 2, **options)
    hx = torch.randn(4 if bidirectional else 2, 3, dtype=F64)
    assert_same(gradients(ours, x, hx), gradients(theirs, x, hx))


def test_input_that_is_not_contiguous():
    theirs, ours = pair(3, 5, 2)
    x = torch.randn(2, 3, 2 * 6, dtype=F64).permute(2, 0, 1)[::2]
    hx = torch.randn(5, 2, 2, dtype=F64).permute(2, 1, 0)
    assert not x.is_contiguous() and not hx.is_contiguous()
    results = []
    for layer in (theirs, ours):
        leaf, start = x.detach().requires_grad_(), hx.detach().requires_grad_()
        output, h_n = layer(leaf, start)
        cotangent = torch.linspace(-1, 1, output.numel(), dtype=F64).view(output.shape[::-1]).permute(2, 1, 0)
        found = torch.autograd.grad(
            (output, h_n), (leaf, start, *layer.parameters()), (cotangent, torch.ones_like(h_n).expand(h_n.shape))
        )
        results.append((output, h_n, *found))
    torch.testing.assert_close(results[1], results[0])


def test_the_input_is_left_as_it_is():
    layer = GRU(3, 5, 2, bidirectional=True)
    x, hx = torch.randn(4, 2, 3), torch.randn(4, 2, 5)
    before = x.clone(), hx.clone(), x._version, hx._version
    layer(x, hx, lengths=torch.tensor([4, 1]))[0].sum().backward()
    assert torch.equal(x, before[0]) and torch.equal(hx, before[1]) and (x._version, hx._version) == before[2:]


@pytest.mark.parametrize("backend", ["aten", "eager", "reference"])
def test_backward_twice_with_a_kept_graph(backend):
    layer = GRU(3, 5, 2, dtype=F64, backend=backend)
    x = torch.randn(4, 2, 3, dtype=F64, requires_grad=True)
    loss = layer(x)[0].square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in (x, *layer.parameters())]
    loss.backward()
    torch.testing.assert_close([p.grad for p in (x, *layer.parameters())], [2 * g for g in once])
    if backend != "reference":
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_dropout_may_change_between_calls():
    layer = GRU(4, 6, 2)
    x = torch.randn(5, 3, 4)
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.dropout = 0.5
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert not torch.equal(layer.train()(x)[0], layer.eval()(x)[0])
    layer.dropout = 0.0
    assert torch.equal(layer.train()(x)[0], layer.eval()(x)[0])


def test_tied_weights_share_their_gradient():
    theirs, ours = pair(5, 5, 2)
    for layer in (theirs, ours):
        layer.weight_hh_l1 = layer.weight_hh_l0
    x = torch.randn(4, 2, 5, dtype=F64)
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) == 7
    assert_same(gradients(ours, x, None), gradients(theirs, x, None))


def test_weights_replaced_by_hand_are_the_ones_used():
    theirs, ours = pair(3, 5)
    x = torch.randn(4, 2, 3, dtype=F64)
    with torch.no_grad():
        ours.weight_hh_l0.data = theirs.weight_hh_l0.data.clone().mul_(2)
        theirs.weight_hh_l0.mul_(2)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.weight_ih_l0 = nn.Parameter(theirs.weight_ih_l0.detach() * 3)
    with torch.no_grad():
        theirs.weight_ih_l0.mul_(3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_pruning():
    layer = GRU(3, 5)
    x = torch.randn(4, 2, 3)
    prune.l1_unstructured(layer, "weight_hh_l0", amount=0.5)
    expected = nn.GRU(3, 5)
    state = {k: v for k, v in layer.state_dict().items() if k in expected.state_dict()}
    state["weight_hh_l0"] = layer.weight_hh_l0_orig * layer.weight_hh_l0_mask
    expected.load_state_dict(state)
    torch.testing.assert_close(layer(x), expected(x))
    layer(x)[0].sum().backward()
    assert not layer.weight_hh_l0_orig.grad[layer.weight_hh_l0_mask == 0].any()
    prune.remove(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x), expected(x))


def test_spectral_norm():
    layer = parametrizations.spectral_norm(GRU(3, 5), "weight_hh_l0")
    x = torch.randn(4, 2, 3)
    for _ in range(20):
        layer(x)
    assert abs(torch.linalg.matrix_norm(layer.weight_hh_l0.detach(), 2) - 1) < 1e-2
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.any()


def test_factory_arguments_and_skip_init():
    with torch.device("meta"):
        assert GRU(3, 5).weight_ih_l0.is_meta
    assert all(p.dtype == F64 for p in GRU(3, 5, device="cpu", dtype=F64).parameters())
    skipped = nn.utils.skip_init(GRU, 3, 5, num_layers=2)
    skipped.load_state_dict(nn.GRU(3, 5, 2).state_dict())
    assert skipped(torch.randn(4, 2, 3))[0].isfinite().all()


def test_hooks_and_named_modules():
    layer, seen = GRU(3, 5), []
    layer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True)
    layer.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    layer.register_full_backward_hook(lambda module, *_: seen.append("backward"))
    x = torch.randn(4, 2, 3, requires_grad=True)
    layer(x, lengths=torch.tensor([4, 2]))[0].sum().backward()
    assert seen == [["lengths"], (4, 2, 5), "backward"]


@pytest.mark.parametrize(("batch_first", "total_length"), [(False, None), (True, 9)])
def test_packed_sequences_of_every_make(batch_first, total_length):
    theirs, ours = pair(3, 5, 2, bidirectional=True, batch_first=batch_first)
    rows = [torch.randn(n, 3, dtype=F64) for n in (2, 6, 1, 6)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first)
    for packed in (
        pack_sequence(rows, enforce_sorted=False),
        pack_padded_sequence(padded, torch.tensor([2, 6, 1, 6]), batch_first, enforce_sorted=False),
        pack_padded_sequence(padded.float(), [2, 6, 1, 6], batch_first, enforce_sorted=False).double(),
        PackedSequence(pack_sequence(sorted(rows, key=len, reverse=True)).data, torch.tensor([4, 3, 2, 2, 2, 2])),
    ):
        (a, a_n), (b, b_n) = ours(packed), theirs(packed)
        assert isinstance(a, PackedSequence)
        torch.testing.assert_close(a_n, b_n)
        torch.testing.assert_close(
            pad_packed_sequence(a, batch_first, total_length=total_length),
            pad_packed_sequence(b, batch_first, total_length=total_length),
        )


def test_packed_gradients_under_autograd_check():
    layer = GRU(2, 3, bidirectional=True, dtype=F64)
    data = torch.randn(5, 2, dtype=F64, requires_grad=True)

    def call(data):
        return layer(PackedSequence(data, torch.tensor([2, 2, 1])))[0].data

    assert torch.autograd.gradcheck(call, (data,))
    assert torch.autograd.gradgradcheck(call, (data,))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, h: (p.to("meta"), h), "input tensor at meta and parameter tensor at cpu"),
        (lambda p, h: (p, h.to("meta")), "hidden tensor at meta"),
        (lambda p, h: (p.double(), h), r"input dtype \(torch.float64\) does not match weight dtype"),
        (lambda p, h: (p, h.double()), "hx must have the dtype of the input"),
        (lambda p, h: (p, h[:, :1]), r"Expected hidden size \(2, 2, 5\), got \[2, 1, 5\]"),
        (lambda p, h: (p, h[:1]), r"Expected hidden size \(2, 2, 5\), got \[1, 2, 5\]"),
        (lambda p, h: (p, h[..., :4]), r"Expected hidden size \(2, 2, 5\), got \[2, 2, 4\]"),
        (lambda p, h: (PackedSequence(p.data[:, :2], *p[1:]), h), "Expected 3, got 2"),
    ],
    ids=["device", "hx-device", "dtype", "hx-dtype", "hx-batch", "hx-layers", "hx-units", "features"],
)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_a_wrong_packed_call_is_named(wrong, message, enforce_sorted):
    layer = GRU(3, 5, 2)
    packed = pack_padded_sequence(torch.randn(4, 2, 3), [4, 2], enforce_sorted=enforce_sorted)
    arguments = wrong(packed, torch.zeros(2, 2, 5))
    with pytest.raises((RuntimeError, ValueError), match=message):
        layer(*arguments)


def test_a_wrong_state_dict_is_named():
    layer = GRU(3, 5, 2)
    good = nn.GRU(3, 5, 2).state_dict()
    for bad, message in (
        ({k: v for k, v in good.items() if k != "bias_hh_l1"}, r"Missing key\(s\) in state_dict: \"bias_hh_l1\""),
        (good | {"weight_hh_l2": good["weight_hh_l1"]}, r"Unexpected key\(s\) in state_dict: \"weight_hh_l2\""),
        (good | {"weight_ih_l0": torch.zeros(15, 4)}, r"size mismatch for weight_ih_l0.*\[15, 4\].*\[15, 3\]"),
        (nn.GRU(3, 5, 2, bidirectional=True).state_dict(), r"Unexpected key.*weight_ih_l0_reverse"),
        (nn.LSTM(3, 5, 2).state_dict(), r"size mismatch for weight_ih_l0"),
    ):
        with pytest.raises(RuntimeError, match=f"(?s){message}"):
            layer.load_state_dict(bad)


@pytest.mark.parametrize("lower", [torch.float16, torch.bfloat16])
def test_gradient_scaler(lower, device):
    layer = GRU(3, 8, 2, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    x, losses = torch.randn(6, 4, 3, device=device), []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=lower):
            loss = layer(x)[0].float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and scaler.get_scale() == 2.0**10
    layer.weight_hh_l0.grad.fill_(torch.inf)
    before = layer.weight_hh_l0.detach().clone()
    scaler.scale(layer(x)[0].sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight_hh_l0, before) and scaler.get_scale() < 2.0**10


def test_jacobians_agree():
    layer = GRU(2, 3, bidirectional=True, dtype=F64)
    x = torch.randn(3, 1, 2, dtype=F64)

    def call(x):
        return layer(x)[0]

    backward = torch.func.jacrev(call)(x)
    torch.testing.assert_close(backward, torch.autograd.functional.jacobian(call, x))
    torch.testing.assert_close(backward, torch.func.jacfwd(call)(x))


def _train_shared(layer: nn.Module, x: torch.Tensor) -> None:
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x)[0].square().mean().backward()
    optimizer.step()


@pytest.mark.slow
def test_another_process_trains_shared_weights():
    layer, x = GRU(3, 5).share_memory(), torch.randn(4, 2, 3)
    twin = nn.GRU(3, 5)
    twin.load_state_dict(layer.state_dict())
    process = torch.multiprocessing.get_context("spawn").Process(target=_train_shared, args=(layer, x))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    _train_shared(twin, x)
    for (name, p), q in itertools.zip_longest(layer.named_parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, msg=lambda m, name=name: f"{name}: {m}")
