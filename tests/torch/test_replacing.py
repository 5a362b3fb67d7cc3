"""Code that knows torch.nn.GRU by its name or its type: `patch`, old pickles, `_flat_weights`, quantization."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from tritongru.compat import GRU, patch

THEIRS = nn.GRU


def pair(*args, **kwargs) -> tuple[nn.GRU, GRU]:
    """Return a torch.nn.GRU and this package's with the same weights."""
    theirs, ours = THEIRS(*args, **kwargs), GRU(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_patch_as_a_context_manager():
    with patch() as replacement:
        assert nn.GRU is nn.modules.GRU is nn.modules.rnn.GRU is GRU
        layer = nn.GRU(3, 5, num_layers=2)
        assert isinstance(layer, nn.GRU) and type(layer) is GRU
        with patch():
            assert nn.GRU is GRU
        assert nn.GRU is GRU
    assert nn.GRU is nn.modules.GRU is nn.modules.rnn.GRU is THEIRS
    replacement.undo()
    assert nn.GRU is THEIRS and not isinstance(layer, nn.GRU)


def test_patch_as_a_call():
    replacement = patch()
    try:
        assert nn.GRU is GRU
    finally:
        replacement.undo()
    assert nn.GRU is THEIRS


def test_patch_ends_with_an_error():
    with pytest.raises(RuntimeError, match="inside"), patch():
        raise RuntimeError("inside")
    assert nn.GRU is THEIRS


def test_a_subclass_made_under_patch():
    with patch():

        class Own(nn.GRU):
            def __init__(self, size):
                super().__init__(3, size, batch_first=True)

    theirs, _ = pair(3, 5, batch_first=True)
    own = Own(5)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(own(x), theirs(x))
    torch.testing.assert_close(own(x, lengths=torch.tensor([6, 2]))[0][0], theirs(x)[0][0])


def test_the_compiler_refuses_a_subclass_of_torchs_gru():
    """Why `GRU` is none: seen with torch 2.6, 2.13 and 2.14. A torch where this fails may take a real subclass."""

    class Real(nn.GRU):
        def forward(self, input, hx=None):
            return input * self.hidden_size

    def compiled(layer):
        torch._dynamo.reset()
        return torch.compile(layer, fullgraph=True, backend="eager")(x)

    x = torch.randn(4, 2, 3)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU"):
        compiled(Real(3, 5))
    theirs, ours = pair(3, 5)
    torch.testing.assert_close(compiled(ours), theirs(x))
    # Under `patch` the compiler's question is one about ours.
    with patch():
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU"):
            compiled(ours)
        with torch._dynamo.config.patch(allow_rnn=True):
            torch.testing.assert_close(compiled(ours), theirs(x))
            torch.testing.assert_close(compiled(ours), theirs(x))


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_module_pickled_as_torchs_gru_is_loaded_as_ours(how):
    theirs, _ = pair(3, 5, 2, bidirectional=True, batch_first=True)
    model = nn.Sequential(theirs)
    if how == "pickle":
        data = pickle.dumps(model)
        with patch():
            ours = pickle.loads(data)[0]
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        with patch():
            ours = torch.load(buffer, weights_only=False)[0]
    assert type(ours) is GRU and (ours.recurrent_dropout, ours.backend) == (0.0, "auto")
    assert "_flat_weights" not in vars(ours) and repr(ours) == repr(theirs)
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    lengths = torch.tensor([6, 2])
    assert not ours(x, lengths=lengths)[0][1, 2:].any()
    # What it reads are its parameters, also after they change, and in copies.
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight_hh_l0.mul_(0.5)
    for made in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(made(x), theirs(x))
        torch.testing.assert_close(made.double()(x.double()), theirs(x), check_dtype=False, rtol=1e-5, atol=1e-6)
    ours.float()


def test_a_pickle_of_an_old_torch():
    theirs, _ = pair(3, 5, 2, bias=False)
    state = theirs.__getstate__()
    # Before torch 1.8 there was no proj_size, before 1.4 no list of names.
    del state["proj_size"], state["_flat_weights_names"], state["_flat_weights"]
    state["all_weights"] = state.pop("_all_weights")
    state["_all_weights"] = [[torch.empty(0)]]
    ours = GRU.__new__(GRU)
    state["all_weights"] = [[torch.empty(0)]]
    ours.__setstate__(state)
    assert ours.proj_size == 0
    x = torch.randn(6, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_flat_weights_may_be_assigned():
    theirs, ours = pair(3, 5, 2)
    x = torch.randn(6, 2, 3)
    for layer in (theirs, ours):
        layer._flat_weights = list(layer._flat_weights)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not set(vars(ours)) & set(ours._flat_weights_names)
    # Tensors computed from the parameters, which stay the ones that are trained.
    for layer in (theirs, ours):
        layer._flat_weights = [0.5 * weight for weight in layer._flat_weights]
        layer(x)[0].sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"d{name}: {m}")
    # `to`, or one set by name, makes both take the parameters again.
    for layer in (theirs, ours):
        layer.double()
    torch.testing.assert_close(ours(x.double()), theirs(x.double()))
    for layer in (theirs, ours):
        layer._flat_weights = [0.5 * weight for weight in layer._flat_weights]
        layer.weight_ih_l0 = nn.Parameter(torch.ones(15, 3, dtype=torch.float64))
    torch.testing.assert_close(ours(x.double()), theirs(x.double()))
    with pytest.raises(ValueError, match="the 8 tensors weight_ih_l0, .*got 1"):
        ours._flat_weights = [torch.ones(1)]


def test_weight_dropout_as_libraries_write_it():
    """AWD-LSTM's way: the parameter renamed, a plain tensor set under its name before each call."""
    theirs, ours = pair(3, 5)
    x = torch.randn(6, 2, 3)
    for layer in (theirs, ours):
        raw = layer.weight_hh_l0
        del layer._parameters["weight_hh_l0"]
        layer.register_parameter("weight_hh_l0_raw", raw)
        torch.manual_seed(1)
        layer.weight_hh_l0 = nn.functional.dropout(raw, 0.5)
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
        layer(x)[0].sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.weight_hh_l0_raw.grad, theirs.weight_hh_l0_raw.grad)


def test_to_torch_shares_the_parameters():
    theirs, ours = pair(3, 5, 2, bidirectional=True, batch_first=True, dropout=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = ours.eval().to_torch()
    assert type(made) is THEIRS and not made.training and repr(made) == repr(theirs)
    assert all(made.get_parameter(name) is p for name, p in ours.named_parameters())
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(made(x), theirs.eval()(x), rtol=0, atol=0)
    with patch():
        assert type(ours.to_torch()) is THEIRS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm")
def test_quantize_dynamic_is_told_of_ours():
    from torch.ao.quantization import quantize_dynamic

    theirs, ours = pair(8, 16, 2)
    x = torch.randn(6, 2, 8)
    with pytest.warns(UserWarning, match=r"put `layer.to_torch\(\)` in its place"):
        left = quantize_dynamic(nn.Sequential(ours), {nn.GRU})
    assert type(left[0]) is GRU
    torch.testing.assert_close(left(x), theirs(x))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.ao.quantization knows")
        quantized = quantize_dynamic(nn.Sequential(ours.to_torch()), {nn.GRU})
    expected = quantize_dynamic(nn.Sequential(theirs), {nn.GRU})
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.GRU
    torch.testing.assert_close(quantized(x), expected(x), rtol=0, atol=0)
