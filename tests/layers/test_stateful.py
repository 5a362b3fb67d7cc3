"""The state a stateful layer carries: what keeps it, what refuses, and that a failed call leaves it as it was."""

import copy
import importlib.util

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch_release import COMPILER_TELLS

from tritongru.keras import GRU, Bidirectional

B, T, I, U = 3, 6, 2, 4
THE_WAY = r"stateful=True(.|\n)*`output, state = layer\(x, initial_state=state\)`"


def make_layer(**options):
    options = {"input_size": I, "stateful": True, "return_sequences": True, **options}
    return GRU(U, bias_initializer="glorot_uniform", **options).eval()


def make_free(layer, **options):
    """A layer of the same weights that carries nothing."""
    free = GRU.from_config({**layer.get_config(), "stateful": False, "batch_input_shape": (None, None, I), **options})
    free.load_state_dict(layer.state_dict())
    return free.eval()


def x_of(*shape):
    return torch.randn(*(shape or (B, T, I)))


def assert_goes_on(layer, *before):
    """The layer's next call goes on from where the calls with `before` ended, and from nowhere else."""
    x = x_of()
    expected = make_free(layer)(torch.cat([*before, x], 1))[:, -T:]
    torch.testing.assert_close(layer(x), expected)


# -- tracers and transforms -------------------------------------------------------------------------------------------


def stacked(values):
    return torch.stack([values, values])


TRACERS = {
    "export": lambda layer, x: torch.export.export(layer, (x,), strict=False),
    "export strict": lambda layer, x: torch.export.export(layer, (x,), strict=True),
    "jit.trace": lambda layer, x: torch.jit.trace(layer, (x,)),
    "make_fx": lambda layer, x: make_fx(layer)(x),
    "make_fx symbolic": lambda layer, x: make_fx(layer, tracing_mode="symbolic")(x),
    "vmap": lambda layer, x: torch.func.vmap(layer)(stacked(x)),
    "grad": lambda layer, x: torch.func.grad(lambda x: layer(x).sum())(x),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "jacrev": lambda layer, x: torch.func.jacrev(layer)(x),
    "compiled vmap": lambda layer, x: torch.compile(torch.func.vmap(layer), backend="eager", fullgraph=True)(
        stacked(x)
    ),
}


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["GRU", "Bidirectional"])
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_carry_the_state_refuses_and_says_the_way(tracer, wrapped):
    torch._dynamo.reset()
    layer, x = make_layer(), x_of()
    whole = Bidirectional(make_layer()) if wrapped else layer
    is_told = COMPILER_TELLS or tracer not in ("export strict", "compiled vmap")
    with pytest.raises(Exception, match=THE_WAY if is_told else None):
        TRACERS[tracer](whole, x)
    assert all(state is None for state in whole.states)
    whole(x)
    kept = [state.clone() for state in whole.states]
    with pytest.raises(Exception, match=THE_WAY if is_told else None):
        TRACERS[tracer](whole, x)
    torch.testing.assert_close(whole.states, kept, rtol=0, atol=0)
    if not wrapped:
        assert_goes_on(layer, x)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_onnx_export_refuses(dynamo, tmp_path):
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")
    from tritongru.tools.onnx import exporter as onnx

    layer, x = make_layer(), x_of()
    layer(x)
    table = {"custom_translation_table": onnx.translation_table()} if dynamo else {}
    with pytest.raises(Exception, match=THE_WAY):
        torch.onnx.export(layer, (x,), tmp_path / "m.onnx", dynamo=dynamo, **table)
    assert_goes_on(layer, x)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_the_way_works_in_every_tracer():
    layer = make_layer()
    free = make_free(layer, return_state=True)
    first, second = x_of(), x_of()
    expected = layer(first), layer(second)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = free

        def forward(self, x, state):
            return self.gru(x, initial_state=state)

    example = first, torch.zeros(B, U)
    programs = [
        torch.export.export(Step(), example, strict=False).module(),
        torch.export.export(Step(), example, strict=True).module(),
        torch.jit.trace(Step(), example),
    ]
    for program in programs:
        y, state = program(first, torch.zeros(B, U))
        torch.testing.assert_close((y, program(second, state)[0]), expected)


def test_compile_carries_the_state():
    torch._dynamo.reset()
    layer = make_layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    free, parts = make_free(layer), x_of(B, 3 * T, I).split(T, dim=1)
    torch.testing.assert_close(torch.cat([compiled(x) for x in parts], 1), free(torch.cat(parts, 1)))
    layer.reset_states()
    torch.testing.assert_close(compiled(parts[0]), free(parts[0]))
    assert_goes_on(layer, parts[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_refuses_to_call_it_again(reentrant):
    layer, x = make_layer(), x_of().requires_grad_()
    y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=THE_WAY):
        y.sum().backward()
    assert_goes_on(layer, x.detach())


def test_the_capture_of_a_cuda_graph_refuses(monkeypatch):
    layer, x = make_layer(), x_of()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=THE_WAY):
        layer(x)


def test_forward_mode_leaves_no_tangent_in_the_state():
    layer, x = make_layer(), x_of()
    with torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.autograd.forward_ad.unpack_dual(layer.states[0]).tangent is None
    assert_goes_on(layer, x)


# -- no buffer --------------------------------------------------------------------------------------------------------


def test_the_state_is_no_buffer_and_no_part_of_a_state_dict():
    layer = make_layer()
    layer(x_of())
    assert list(layer.state_dict()) == ["kernel", "recurrent_kernel", "bias"]
    assert not list(layer.buffers())


def test_an_averaged_model_does_not_average_the_state():
    model = make_layer()
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    first, second = x_of(), x_of()
    averaged.module(first)
    model(second)
    for _ in range(2):
        averaged.update_parameters(model)
    assert_goes_on(averaged.module, first)
    assert_goes_on(model, second)


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="stateful=True(.|\n)*DistributedDataParallel"):
        make_layer()._replicate_for_data_parallel()
    assert make_free(make_layer())._replicate_for_data_parallel() is not None


# -- a call that fails, or works out shapes alone ---------------------------------------------------------------------

FAILURES = {
    "mask": (ValueError, {"mask": torch.ones(B, T + 1)}),
    "resets": (ValueError, {"resets": torch.ones(B, T + 1)}),
    "initial_state": (ValueError, {"initial_state": torch.zeros(B, U + 1)}),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_failed_first_call_fixes_nothing(failure, lazy):
    layer = make_layer(input_size=None if lazy else I)
    error, arguments = FAILURES[failure]
    with pytest.raises(error, match=f"`{failure}`"):
        layer(x_of(), **arguments)
    assert layer.states == [None]
    with pytest.raises(ValueError, match="batch size"):
        layer.reset_states()
    assert layer(x_of(5, 2, I)).shape == (5, 2, U)


def test_a_failed_call_leaves_the_state():
    layer, x = make_layer(activity_regularizer=lambda y: 1 / 0 if y.isnan().any() else y.sum()), x_of()
    layer(x)
    for error, arguments in FAILURES.values():
        with pytest.raises(error):
            layer(x_of(), **arguments)
    with pytest.raises(ValueError, match=r"expected shape=\(3, None, 2\)"):
        layer(x_of(B + 1, T, I))
    with pytest.raises(ZeroDivisionError):
        layer(torch.full((B, T, I), torch.nan))
    assert_goes_on(layer, x)


@pytest.mark.filterwarnings("ignore:`initial_state` of the stateful layer forward_gru is ignored")
def test_a_bidirectional_goes_on_with_both_layers_or_with_neither():
    layer, x = Bidirectional(make_layer()), x_of()
    wrong = [torch.zeros(B, U), torch.zeros(B, U + 1)]
    with pytest.raises(ValueError, match="`initial_state`"):
        layer(x, initial_state=wrong)
    assert layer.states == [None, None]
    layer(x)
    before = [state.clone() for state in layer.states]
    with pytest.raises(ValueError, match="`initial_state`"):
        layer(x, initial_state=wrong)
    torch.testing.assert_close(layer.states, before, rtol=0, atol=0)


def test_shapes_alone_fix_nothing():
    layer = make_layer(device="meta")
    assert layer(torch.empty(B, T, I, device="meta")).shape == (B, T, U)
    assert layer.states == [None]
    layer.to_empty(device="cpu").reset_parameters()
    x = x_of(5, T, I)
    torch.testing.assert_close(layer(x), make_free(layer)(x))

    layer = make_layer()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x_of())).shape == (B, T, U)
    assert layer.states == [None]
    x = x_of()
    layer(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(x_of()))
    assert_goes_on(layer, x)


# -- devices, dtypes, copies ------------------------------------------------------------------------------------------


def test_memory_that_was_emptied_gives_zeros():
    zeros = torch.zeros(B, U)
    layer = make_layer()
    layer(x_of())
    layer.to_empty(device="cpu")
    assert torch.equal(layer.states[0], zeros)
    nn.Sequential(layer).to_empty(device="cpu")
    layer.reset_parameters()
    assert_goes_on(layer)

    layer = make_layer(device="meta", batch_input_shape=(B, None, I))
    assert layer.states[0].is_meta
    assert torch.equal(layer.to_empty(device="cpu").states[0], zeros)

    layer = make_layer()
    layer(x_of())
    layer.to("meta").to_empty(device="cpu")
    assert torch.equal(layer.states[0], zeros)

    layer(x_of())
    layer.reset_parameters()
    assert torch.equal(layer.states[0], zeros)


@pytest.mark.parametrize("batch", [None, B])
def test_weights_assigned_to_a_layer_on_meta(batch):
    source = make_layer()
    layer = make_layer(device="meta", batch_input_shape=(batch, None, I))
    layer(torch.empty(B, T, I, device="meta"))
    layer.load_state_dict(source.state_dict(), assign=True)
    assert batch is None or torch.equal(layer.states[0], torch.zeros(B, U))
    assert_goes_on(layer)


def test_weights_assigned_in_another_dtype_take_the_state_along():
    layer, x = make_layer(), x_of()
    layer(x)
    kept = layer.states[0].double()
    layer.load_state_dict({name: w.double() for name, w in layer.state_dict().items()}, assign=True)
    torch.testing.assert_close(layer.states[0], kept, rtol=0, atol=0)
    assert layer(x).dtype == torch.float64


def test_to_takes_the_state_along():
    layer, x = make_layer(), x_of()
    layer(x)
    kept = layer.states[0].clone()
    for move in (lambda m: m.double(), lambda m: m.to(torch.float32), lambda m: m.cpu(), lambda m: m.share_memory()):
        move(layer)
        assert layer.states[0].dtype == layer.kernel.dtype
        torch.testing.assert_close(layer.states[0].float(), kept, rtol=0, atol=0)
    assert_goes_on(layer, x)


def test_states_given_to_a_bidirectional():
    layer = Bidirectional(make_layer())
    values = [torch.randn(B, U), torch.randn(B, U)]
    with pytest.raises(ValueError, match="batch size"):
        layer.reset_states(values)
    x = x_of()
    layer(x)
    layer.reset_states([value.numpy() for value in values])
    torch.testing.assert_close(layer.states, values, rtol=0, atol=0)
    free = Bidirectional(make_free(layer.forward_layer))
    free.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), free(x, initial_state=values))
    kept = [state.clone() for state in layer.states]
    for wrong, message in (
        ([values[0], torch.zeros(B, U + 1)], r"State 0.*expected shape=\(3, 4\).*\(3, 5\)"),
        (values[:1], r"expects 2 states, \[forward, backward\], but it received 1"),
        (values[0], "received 1"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.reset_states(wrong)
        torch.testing.assert_close(layer.states, kept, rtol=0, atol=0)
    layer.reset_states()
    assert not torch.stack(layer.states).any()
    with pytest.raises(AttributeError, match="stateful"):
        free.reset_states(values)


def test_given_states_are_copied():
    layer, value = make_layer(batch_input_shape=(B, None, I)), torch.ones(B, U)
    layer.reset_states(value)
    value.zero_()
    assert layer.states[0].all()
    twin = copy.deepcopy(layer)
    twin(x_of())
    assert torch.equal(layer.states[0], torch.ones(B, U))
