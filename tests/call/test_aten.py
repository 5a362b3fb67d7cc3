"""torch's own GRU under the conditions of a GPU: gradients without training mode, second derivatives, no warning."""

import warnings

import pytest
import torch

from tritongru import gru
from tritongru.backends import aten
from tritongru.backends.aten import TwiceDifferentiable


def make_tensors(has_bias: bool, needs: str = "all", T=4, B=2, I=3, U=5):
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, B, I), (B, U), (3 * U, I), (3 * U, U), *([(3 * U,)] * 2 if has_bias else [])]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5 for shape in shapes]
    for number, tensor in enumerate(tensors):
        tensor.requires_grad_(needs == "all" or number == int(needs))
    return tensors


@pytest.mark.bits
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("needs", ["all", "0", "1", "2", "3"])
def test_gradients_are_torchs_own(has_bias, needs):
    tensors = make_tensors(has_bias, needs)
    x, h0, *weights = tensors
    wanted = [t for t in tensors if t.requires_grad]
    ours, theirs = TwiceDifferentiable.apply(*tensors), aten.call_torch(x, h0, weights, train=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
    for chosen in ([0], [1], [0, 1]):
        for k, (mine, other) in enumerate(
            zip(*(torch.autograd.grad([r[c].sin().sum() for c in chosen], wanted, retain_graph=True, allow_unused=True)
                  for r in (ours, theirs)), strict=True)
        ):  # fmt: skip
            torch.testing.assert_close(mine, other, msg=lambda text, k=k: f"gradient {k}: {text}")


@pytest.mark.parametrize("has_bias", [True, False])
def test_second_derivatives(has_bias):
    tensors = make_tensors(has_bias, T=3, B=1, I=2, U=2)
    assert torch.autograd.gradgradcheck(lambda *t: TwiceDifferentiable.apply(*t), tensors)
    loss = sum(result.sin().sum() for result in TwiceDifferentiable.apply(*tensors))
    plain = torch.autograd.grad(loss, tensors, retain_graph=True)
    for one, other in zip(plain, torch.autograd.grad(loss, tensors, create_graph=True), strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_backward_pass_needs_a_kept_graph():
    tensors = make_tensors(True)
    loss = TwiceDifferentiable.apply(*tensors)[0].sum()
    kept = torch.autograd.grad(loss, tensors, retain_graph=True)
    for one, other in zip(kept, torch.autograd.grad(loss, tensors), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors)


def test_cudnn_is_told_to_keep_what_the_gradient_needs(monkeypatch):
    """cuDNN refuses a backward pass after a forward pass that was not in training mode."""
    seen = []
    whole = torch.gru

    def spy(*arguments):
        seen.append(arguments[6])
        return whole(*arguments)

    monkeypatch.setattr(torch, "gru", spy)
    TwiceDifferentiable.apply(*make_tensors(True))
    assert seen == [True]


def test_the_advice_to_flatten_weights_is_not_passed_on():
    class OnGpu:
        device = torch.device("cuda")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with aten._without_copy_warning(OnGpu()):
            warnings.warn(
                "RNN module weights are not part of single contiguous chunk of memory. This ...", stacklevel=1
            )
            warnings.warn("something else", stacklevel=1)
    assert [str(w.message) for w in caught] == ["something else"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype):
    tensors = [t.detach().to("cuda", dtype).requires_grad_() for t in make_tensors(True)]
    x, h0, w, u, bias_x, bias_h = tensors
    exact = [t.detach().double().requires_grad_() for t in tensors]

    def run(x, h0, w, u, bias_x, bias_h, backend):
        out, last = gru(x, w, u, (bias_x, bias_h), h0, time_major=True, layout="torch", backend=backend)
        return out.sin().sum() + last.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = torch.autograd.grad(run(*tensors, "aten"), tensors)
    expected = torch.autograd.grad(run(*exact, "reference"), exact)
    limit = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}[dtype]
    for mine, other in zip(found, expected, strict=True):
        assert (mine.double() - other).abs().max() <= limit * (1 + other.abs().max())
    if dtype == torch.float32:
        (d_x,) = torch.autograd.grad(run(*tensors, "aten"), [x], create_graph=True)
        assert torch.isfinite(torch.autograd.grad(d_x.square().sum(), u)[0]).all()
