"""The layer, edge by edge: what Keras documents and does, with literal expectations."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

import tritongru
from tritongru.keras import GRU, Bidirectional, GRUCell

B, T, I, U = 3, 6, 2, 4
MASK = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)


def constant(units, **arguments):
    """A layer of known weights: kernel 0.01, recurrent kernel 0.02, bias 0.03."""
    values = {"kernel_initializer": 0.01, "recurrent_initializer": 0.02, "bias_initializer": 0.03}
    config = {k: {"class_name": "Constant", "config": {"value": v}} for k, v in values.items()}
    return GRU(units, **config, **arguments)


def sequence(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


def random_layer(units=U, size=I, **arguments):
    return GRU(units, input_size=size, bias_initializer="glorot_uniform", **arguments).eval()


@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({}, [0.5217289, 0.6371659, 0.39384964]),
        ({"go_backwards": True}, [0.24406259, 0.611516, 0.3928808]),
        ({"unroll": True}, [0.5217289, 0.6371659, 0.39384964]),
        ({"reset_after": False}, [0.51447755, 0.6426879, 0.40208298]),
        ({"use_bias": False}, [0.49988455, 0.64701194, 0.4103359]),
    ],
)
def test_published_values(arguments, rows, implementation):
    output = constant(3, implementation=implementation, **arguments)(sequence(3, 6, 4))
    torch.testing.assert_close(output, torch.tensor(rows)[:, None].expand(3, 3), rtol=1e-5, atol=1e-5)


def test_published_stateful_values():
    layer, x = constant(4, stateful=True), sequence(2, 3, 4)
    for _ in range(2):
        layer(x)
        expected = torch.tensor([[0.29542392], [0.5885018]]).expand(2, 4)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        layer.reset_states()


@pytest.mark.parametrize(
    ("backwards", "expected"),
    [
        (False, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
        (True, [[0.13486053, 0.23261218], [0.78257304, 0.9691353]]),
    ],
)
def test_published_initial_state_values(backwards, expected):
    layer = constant(2, go_backwards=backwards, return_state=True)
    output, state = layer(sequence(2, 4, 3), initial_state=np.arange(4.0, dtype="float32").reshape(2, 2))
    torch.testing.assert_close(output, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(output, state)


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        ({"unroll": True}, 0.19393763, 0.30818558),
        ({"return_sequences": True}, [0.03606692, 0.09497581, 0.09497581, 0.19393763], [0.16051409] * 3 + [0.30818558]),
        (
            {"return_sequences": True, "zero_output_for_mask": True},
            [0.03606692, 0.09497581, 0, 0.19393763],
            [0.16051409, 0, 0, 0.30818558],
        ),
        ({"go_backwards": True}, 0.11669192, 0.28380975),
    ],
)
def test_published_masking_values(arguments, first, second):
    mask = np.array([[True, True, False, True], [True, False, False, True]])
    output = constant(2, **arguments)(sequence(2, 4, 3), mask=mask)
    expected = torch.tensor([first, second])[..., None].expand(output.shape)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_masked_steps_repeat_and_begin_with_zeros():
    layer = random_layer(return_sequences=True, return_state=True)
    x, h0 = torch.randn(B, T, I), torch.randn(B, U)
    y, state = layer(x, mask=MASK, initial_state=h0)
    assert torch.equal(y[0, 2], y[0, 1]) and torch.equal(y[0, 5], y[0, 4])
    assert not y[1, :2].any() and torch.equal(y[1, 5], y[1, 3])
    assert not y[2].any() and torch.equal(state[2], h0[2])
    assert torch.equal(state[:2], y[:2, -1])
    # A masked step is a step that is not there.
    short, _ = layer(x[:1, [0, 1, 3, 4]], initial_state=h0[:1])
    torch.testing.assert_close(y[:1, [0, 1, 3, 4]], short)


def test_left_and_right_padding_give_one_state():
    layer, x = random_layer(), torch.randn(B, 4, I)
    pad = torch.randn(B, 2, I)
    left = layer(torch.cat([pad, x], 1), mask=torch.tensor([0, 0, 1, 1, 1, 1]).expand(B, T))
    right = layer(torch.cat([x, pad], 1), mask=torch.tensor([1, 1, 1, 1, 0, 0]).expand(B, T))
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(left, layer(x))


@pytest.mark.parametrize(
    "form",
    [lambda m: m.float(), lambda m: m[..., None], lambda m: m.numpy(), lambda m: [m], lambda m: (m.numpy(), None),
     lambda m: m.tolist()],
    ids=["float", "rank 3", "numpy", "list", "tuple of numpy", "nested lists"],
)  # fmt: skip
def test_forms_of_a_mask(form):
    layer, x = random_layer(), torch.randn(B, T, I)
    assert torch.equal(layer(x, mask=form(MASK)), layer(x, mask=MASK))


def test_mask_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"`mask`.*\(3, 6\).*\(3, 5\)"):
        random_layer()(torch.randn(B, T, I), mask=MASK[:, :5])
    with pytest.raises(ValueError, match=r"`mask`.*\(6, 3\).*\(3, 6\)"):
        random_layer(time_major=True)(torch.randn(T, B, I), mask=MASK)


def test_zero_output_for_mask_zeroes_the_last_output_but_not_the_state():
    layer = random_layer(zero_output_for_mask=True, return_state=True)
    output, state = layer(torch.randn(B, T, I), mask=MASK)
    assert not output.any() and state[:2].all()


def test_compute_mask():
    assert GRU(U, return_sequences=True).compute_mask(None, MASK) is MASK
    assert GRU(U).compute_mask(None, MASK) is None
    layer = GRU(U, return_sequences=True, return_state=True, go_backwards=True)
    assert layer.compute_mask(None, [MASK]) == [MASK, None]
    assert GRU(U).supports_masking is True


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_go_backwards_is_the_reversed_input(sequences, masked):
    layer = random_layer(return_sequences=sequences)
    backwards = random_layer(return_sequences=sequences, go_backwards=True)
    backwards.load_state_dict(layer.state_dict())
    x = torch.randn(B, T, I)
    mask = MASK if masked else None
    expected = layer(x.flip(1), mask=None if mask is None else mask.flip(1))
    torch.testing.assert_close(backwards(x, mask=mask), expected)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_time_major_is_the_transpose(sequences, backwards):
    layer = random_layer(return_sequences=sequences, go_backwards=backwards, return_state=True)
    turned = random_layer(return_sequences=sequences, go_backwards=backwards, return_state=True, time_major=True)
    turned.load_state_dict(layer.state_dict())
    x, resets = torch.randn(B, T, I), torch.rand(B, T) < 0.3
    y, state = layer(x, mask=MASK, resets=resets)
    z, last = turned(x.transpose(0, 1), mask=MASK.t(), resets=resets.t())
    torch.testing.assert_close(z.transpose(0, 1) if sequences else z, y)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("backend", ["aten", "eager", "reference"])
@pytest.mark.parametrize("steps", [0, 1, T, 40])
@pytest.mark.parametrize(
    "arguments", [{}, {"return_sequences": True}, {"go_backwards": True}, {"stateful": True}], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_returned_shares_its_memory(backend, steps, arguments, masked):
    if backend == "aten" and (masked or steps == 0):
        pytest.skip("aten takes neither a mask nor T = 0")
    layer = random_layer(return_state=True, backend=backend, **arguments)
    x, h0 = torch.randn(B, steps, I), torch.randn(B, U)
    mask = torch.ones(B, steps) if masked else None
    tensors = [*layer(x, mask=mask, initial_state=h0), x, h0, *layer.parameters(), *layer.states]
    places = [t.untyped_storage().data_ptr() for t in tensors if t is not None and t.numel()]
    assert len(set(places)) == len(places)
    if not layer.stateful:
        y, h = layer(x, mask=mask, initial_state=h0)
        expected = y.clone()
        with torch.no_grad():
            h.zero_()
        assert torch.equal(y, expected)


def test_output_shapes():
    assert GRU(U).compute_output_shape((B, T, I)) == (B, U)
    assert GRU(U, return_sequences=True).compute_output_shape((None, None, I)) == (None, None, U)
    layer = GRU(U, return_sequences=True, return_state=True, time_major=True)
    assert layer.compute_output_shape(torch.Size([T, B, I])) == [(T, B, U), (B, U)]


@pytest.mark.parametrize("batch,time", [(2, 1), (1, 3), (0, 3), (2, 0)])
def test_small_and_empty_inputs(batch, time):
    layer = random_layer(return_sequences=True, return_state=True)
    y, state = layer(torch.randn(batch, time, I))
    assert y.shape == (batch, time, U) and state.shape == (batch, U)
    assert random_layer()(torch.randn(batch, time, I)).shape == (batch, U)


def test_unroll_needs_steps():
    with pytest.raises(ValueError, match="unroll=True.*T=0"):
        GRU(U, unroll=True)(torch.randn(B, 0, I))
    x = torch.randn(B, T, I)
    layer, unrolled = random_layer(), random_layer(unroll=True, zero_output_for_mask=True)
    unrolled.load_state_dict(layer.state_dict())
    assert torch.equal(unrolled(x), layer(x))
    assert not unrolled(x, mask=MASK).any()


def test_resets_separate_segments():
    layer = random_layer(return_sequences=True)
    x = torch.randn(1, T, I)
    resets = torch.tensor([[0, 0, 1, 0, 0, 0]])
    y = layer(x, resets=resets)
    torch.testing.assert_close(y, torch.cat([layer(x[:, :2]), layer(x[:, 2:])], 1))


@pytest.mark.parametrize("swapped", [False, True])
def test_bidirectional_resets_give_both_the_same_segments(swapped):
    layer = Bidirectional(random_layer(return_sequences=True, go_backwards=swapped)).eval()
    x = torch.randn(1, T, I)
    # Backwards, a reset before step t parts it from step t + 1.
    resets = torch.zeros(1, T)
    resets[0, 3 if swapped else 4] = 1
    y = layer(x, resets=resets)
    first, second = layer(x[:, :4]), layer(x[:, 4:])
    if swapped:
        # The forward layer's sequence is in the order of processing, and the other is turned to it.
        torch.testing.assert_close(y, torch.cat([second, first], 1))
    else:
        torch.testing.assert_close(y, torch.cat([first, second], 1))


@pytest.mark.parametrize(("implementation", "count"), [(0, 1), (1, 3), (2, 1)])
def test_input_masks(implementation, count):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = GRU(U, dropout=0.5, implementation=implementation, return_sequences=True)
    x = torch.randn(B, T, I)
    y = layer(x, training=True)
    masks = layer.get_dropout_mask_for_cell(x, True, count=count)
    masks = masks if isinstance(masks, list) else [masks]
    assert len(masks) == count
    for mask in masks:
        assert mask.shape == x.shape and set(mask.unique().tolist()) <= {0.0, 2.0}
        assert torch.equal(mask, mask[:, :1].expand_as(mask))
    expected, _ = tritongru.gru(x, layer.kernel, layer.recurrent_kernel, layer.bias, input_dropout=masks)
    torch.testing.assert_close(y, expected)
    layer(x, training=True)
    again = layer.get_dropout_mask_for_cell(x, True)
    assert again is not masks and not all(torch.equal(a, b) for a, b in zip(masks, again, strict=False))


def test_recurrent_masks():
    layer = GRU(8, recurrent_dropout=0.5)
    assert layer.implementation == 1
    x = torch.randn(B, T, I)
    y = layer(x)
    masks = layer.get_recurrent_dropout_mask_for_cell(None, True, count=7)
    assert len(masks) == 3 and all(m.shape == (B, 8) for m in masks)
    _, expected = tritongru.gru(x, layer.kernel, layer.recurrent_kernel, layer.bias, recurrent_dropout=masks)
    torch.testing.assert_close(y, expected)


def test_mask_caches():
    layer, x = GRU(U, dropout=0.5), torch.randn(B, 50)
    assert GRU(U).get_dropout_mask_for_cell(x, True) is None
    assert GRU(U).get_recurrent_dropout_mask_for_cell(x, True) is None
    first = layer.get_dropout_mask_for_cell(x, True)
    assert first.shape == x.shape
    assert layer.get_dropout_mask_for_cell(x[:1], False, count=3) is first
    layer.reset_dropout_mask()
    assert not torch.equal(layer.get_dropout_mask_for_cell(x, True), first)
    layer.reset_dropout_mask()
    ones = layer.get_dropout_mask_for_cell(x, False, count=3)
    assert isinstance(ones, list) and len(ones) == 3 and all((m == 1).all() for m in ones)


def test_dropout_follows_training():
    layer, x = GRU(U, dropout=0.5, input_size=40), torch.randn(B, T, 40)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x, training=False), layer(x, training=False))
    layer.eval()
    assert torch.equal(layer(x), layer(x)) and not torch.equal(layer(x, training=True), layer(x))


def test_rates_are_clamped():
    layer = GRU(U, dropout=1.5, recurrent_dropout=-0.5)
    assert (layer.dropout, layer.recurrent_dropout) == (1.0, 0.0)
    assert layer(torch.randn(B, T, I), training=False).shape == (B, U)
    with pytest.raises(ValueError, match="`recurrent_dropout`.*1.0"):
        GRU(U, recurrent_dropout=1.0)(torch.randn(B, T, I))


def test_stateful_calls_continue():
    layer = random_layer(stateful=True, return_sequences=True)
    x = torch.randn(B, T, I, requires_grad=True)
    assert layer.states == [None]
    parts = [layer(part) for part in x.split(2, dim=1)]
    free = random_layer(return_sequences=True)
    free.load_state_dict(layer.state_dict())
    torch.testing.assert_close(torch.cat(parts, 1), free(x))
    torch.testing.assert_close(layer.states[0], parts[-1][:, -1])
    # No gradient crosses from one call to the one before.
    parts[-1].sum().backward()
    assert not x.grad[:, :4].any() and x.grad[:, 4:].any()
    assert list(layer.state_dict()) == ["kernel", "recurrent_kernel", "bias"]


def test_states_of_a_layer_that_is_not_stateful():
    layer = random_layer()
    layer(torch.randn(B, T, I))
    assert layer.states == [None]
    with pytest.raises(AttributeError, match="Layer must be stateful.*stateful=False"):
        layer.reset_states()


def test_reset_states():
    layer = random_layer(stateful=True)
    with pytest.raises(ValueError, match="batch size"):
        layer.reset_states()
    layer(torch.randn(B, T, I))
    layer.reset_states()
    assert torch.equal(layer.states[0], torch.zeros(B, U))
    value = np.ones((B, U))
    for form in (value, [value], torch.ones(B, U)):
        layer.reset_states(form)
        assert torch.equal(layer.states[0], torch.ones(B, U)) and layer.states[0].dtype == torch.float32
    with pytest.raises(ValueError, match="expects 1 states, but it received 2"):
        layer.reset_states([value, value])
    with pytest.raises(ValueError, match=r"State 0 is incompatible.*\(3, 4\).*\(4, 4\)"):
        layer.reset_states(np.ones((4, 4)))


def test_batch_size_known_before_the_first_call():
    layer = GRU(U, stateful=True, batch_input_shape=(B, None, I))
    assert torch.equal(layer.states[0], torch.zeros(B, U))
    layer.reset_states(np.ones((B, U)))
    assert GRU.from_config(layer.get_config()).states[0].shape == (B, U)
    lazy = GRU(U, stateful=True, time_major=True)
    lazy.build((None, B, I))
    assert lazy.states[0].shape == (B, U)
    with pytest.raises(ValueError, match=r"expected shape=\(None, 3, 2\), found shape=\(6, 2, 2\)"):
        lazy(torch.randn(T, 2, I))


def test_state_kept_under_inference_mode_can_be_trained_from():
    layer = random_layer(stateful=True)
    with torch.inference_mode():
        layer(torch.randn(B, T, I))
    layer(torch.randn(B, T, I)).sum().backward()
    assert layer.recurrent_kernel.grad.any()


def test_initial_state_of_a_stateful_layer_is_taken_only_at_zero():
    layer, free = random_layer(stateful=True), random_layer()
    free.load_state_dict(layer.state_dict())
    x, h0 = torch.randn(B, T, I), torch.randn(B, U)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(x, initial_state=h0)
    torch.testing.assert_close(y, free(x, initial_state=h0))
    with pytest.warns(UserWarning, match="`initial_state`.*ignored"):
        z = layer(x, initial_state=h0)
    torch.testing.assert_close(z, free(x, initial_state=y))
    layer.reset_states()
    torch.testing.assert_close(layer(x, initial_state=h0), y)


def test_stateful_masked_row_keeps_its_state_and_half_precision_keeps_it_in_float32():
    layer = random_layer(stateful=True, dtype="mixed_bfloat16")
    layer(torch.randn(B, T, I))
    before = layer.states[0]
    assert before.dtype == torch.float32
    y = layer(torch.randn(B, T, I), mask=MASK)
    assert y.dtype == torch.bfloat16 and torch.equal(layer.states[0][2], before[2])


def test_forms_of_an_initial_state():
    layer, x, h0 = random_layer(), torch.randn(B, T, I), torch.randn(B, U)
    expected = layer(x, initial_state=h0)
    for form in ([h0], (h0,), h0.numpy(), h0.double()):
        assert torch.equal(layer(x, initial_state=form), expected)
    assert torch.equal(layer([x, h0]), expected)
    assert torch.equal(layer([x]), layer(x))
    with pytest.raises(ValueError, match="`initial_state` was given twice"):
        layer([x, h0], initial_state=h0)
    with pytest.raises(ValueError, match="passed 2 initial states"):
        layer([x, h0, h0])


@pytest.mark.parametrize("shape", [(B, U + 1), (1, U), (B + 1, U), (U,)])
@pytest.mark.parametrize("built", [False, True])
def test_initial_state_of_the_wrong_shape(shape, built):
    layer = random_layer() if built else GRU(U)
    with pytest.raises(ValueError, match=r"`initial_state`.*\(3, 4\)"):
        layer(torch.randn(B, T, I), initial_state=torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"units": 0}, ValueError, "`units`.*0"),
        ({"units": 2.5}, TypeError, "`units`.*2.5"),
        ({"units": "a"}, TypeError, "`units`.*'a'"),
        ({"units": None}, TypeError, "`units`.*None"),
        ({"activation": 3}, TypeError, "`activation`=3"),
        ({"recurrent_activation": "nope"}, ValueError, "`recurrent_activation`='nope'"),
        ({"kernel_initializer": "nope"}, ValueError, "`kernel_initializer`: Unknown initializer.*nope"),
        ({"bias_constraint": "nope"}, ValueError, "`bias_constraint`: Unknown constraint.*nope"),
        ({"activity_regularizer": "nope"}, ValueError, "`activity_regularizer`: Unknown regularizer.*nope"),
        ({"implementation": 3}, ValueError, "`implementation`.*3"),
        ({"backend": "cuda"}, ValueError, "`backend`.*'cuda'"),
        ({"dtype": "int32"}, ValueError, "`dtype`.*'int32'"),
        ({"input_size": 0}, ValueError, "`input_size`.*0"),
        ({"input_size": 2.5}, ValueError, "`input_size`.*got 2.5$"),
        ({"constants": 1}, TypeError, "`constants`=1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GRU(**{"units": U, **arguments})


@pytest.mark.parametrize(
    ("size", "use_bias", "reset_after", "count"), [(3, True, True, 42), (3, True, False, 36), (3, False, True, 30)]
)
def test_number_of_weights(size, use_bias, reset_after, count):
    layer = GRU(2, input_size=size, use_bias=use_bias, reset_after=reset_after)
    assert sum(p.numel() for p in layer.parameters()) == count


def test_default_weights():
    layer = GRU(U, input_size=I)
    limit = (6 / (I + 3 * U)) ** 0.5
    assert layer.kernel.abs().max() <= limit and layer.kernel.abs().max() > limit / 2
    torch.testing.assert_close(layer.recurrent_kernel @ layer.recurrent_kernel.t(), torch.eye(U), atol=1e-5, rtol=0)
    assert torch.equal(layer.bias, torch.zeros(2, 3 * U))


def test_lazy_building():
    layer = GRU(U)
    assert isinstance(layer, torch.nn.Module) and not layer.built and layer.get_weights() == [] and layer.losses == []
    with pytest.raises(ValueError, match="length 3.*expecting 0"):
        layer.set_weights([np.zeros(1)] * 3)
    decision = layer.explain(torch.randn(B, T, I))
    assert decision.backend in ("aten", "numba") and not layer.built and layer.last_decision is None
    with torch.no_grad():  # weights that are not there want no gradients
        layer(torch.randn(B, T, I))
    assert isinstance(layer, GRU) and layer.built and layer.input_size == I and layer.last_decision == decision
    with pytest.raises(ValueError, match=r"\(None, None, 2\), found shape=\(3, 6, 5\)"):
        layer(torch.randn(B, T, 5))
    again = GRU(U)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(B, T, I)
    assert torch.equal(again(x), layer(x))
    with pytest.raises(ValueError, match=r"`kernel`.*\(2, 15\), got \(2, 12\)"):
        other = GRU(5)
        other.load_state_dict(layer.state_dict())
        other(x)


@pytest.mark.parametrize("built", [False, True])
def test_copies(built):
    layer = GRU(U, activity_regularizer="l2", dropout=0.5, dtype="float64")
    x = torch.randn(B, T, I, dtype=torch.float64)
    if built:
        layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.get_config() == layer.get_config() and twin.built is built
        y = twin(x, training=False)
        assert y.dtype == torch.float64
        if built:
            assert torch.equal(y, layer(x, training=False))


def test_weights_as_arrays():
    layer, other = GRU(U, input_size=I), GRU(U, input_size=I)
    weights = [w + 1 for w in layer.get_weights()]
    assert [w.shape for w in weights] == [(I, 12), (U, 12), (2, 12)]
    other.set_weights(weights)
    assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), weights, strict=True))
    with pytest.raises(ValueError, match="length 1.*expecting 3"):
        other.set_weights(weights[:1])
    with pytest.raises(ValueError, match=r"\(4, 12\).*`recurrent_kernel`.*\(2, 12\)"):
        other.set_weights([weights[0], weights[2], weights[2]])
    assert len(GRU(U, input_size=I, use_bias=False).get_weights()) == 2
    assert np.array_equal(GRU(U, input_shape=(T, I), weights=weights).get_weights()[1], weights[1])


def test_trainable():
    layer = GRU(U, trainable=False)
    layer(torch.randn(B, T, I))
    assert not any(p.requires_grad for p in layer.parameters()) and layer.get_config()["trainable"] is False
    layer.trainable = True
    assert all(p.requires_grad for p in layer.parameters())


def test_configuration_of_old_implementation():
    config = GRU(U).get_config() | {"implementation": 0}
    assert GRU.from_config(config).implementation == 1 and config["implementation"] == 1
    with pytest.warns(UserWarning, match="implementation=0"):
        assert GRU(U, implementation=0).implementation == 0


def test_configuration_keeps_size_backend_and_callables():
    layer = GRU(U, activation=torch.special.erf, input_size=I, backend="reference", zero_output_for_mask=True, name="n")
    twin = GRU.from_config(layer.get_config())
    assert twin.built and twin.backend == "reference" and twin.activation is torch.special.erf and twin.name == "n"
    assert twin.get_config() == layer.get_config()


def test_named_backend_that_cannot_run_raises():
    layer = random_layer(activation="gelu", backend="eager")
    with pytest.raises(tritongru.UnsupportedError, match="activation='gelu'"):
        layer(torch.randn(B, T, I))


def test_dtypes():
    x = torch.randn(B, T, I)
    assert GRU(U)(x.double()).dtype == torch.float32
    assert GRU(U, dtype=torch.float64)(x).dtype == torch.float64
    assert GRU(U, dtype="bfloat16")(x).dtype == torch.bfloat16
    mixed = GRU(U, dtype="mixed_float16", return_state=True)
    y, state = mixed(x)
    assert y.dtype == state.dtype == torch.float16 and mixed.kernel.dtype == torch.float32
    assert GRU.from_config(mixed.get_config()).compute_dtype == torch.float16
    assert random_layer().double()(x).dtype == torch.float64
    with pytest.raises(TypeError, match="`inputs` must be floating point, got torch.int64"):
        GRU(U)(torch.zeros(B, T, I, dtype=torch.int64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer = random_layer()
        assert layer(x).dtype == torch.bfloat16 and layer.kernel.dtype == torch.float32


def test_losses_in_order():
    layer = GRU(U, return_sequences=True, return_state=True, time_major=True, activity_regularizer="l2",
                kernel_regularizer="l1", recurrent_regularizer="l2", bias_regularizer="l1_l2")  # fmt: skip
    x = torch.randn(T, B, I)
    layer.build(I)
    assert len(layer.losses) == 3
    for _ in range(2):
        y, state = layer(x)
    expected = torch.stack([
        0.01 * y.square().sum() / T, 0.01 * state.square().sum() / B, 0.01 * layer.kernel.abs().sum(),
        0.01 * layer.recurrent_kernel.square().sum(), torch.zeros(()),
    ])  # fmt: skip
    torch.testing.assert_close(torch.stack(layer.losses), expected)
    torch.testing.assert_close(layer.regularization_loss(), expected.sum())
    assert GRU(U, input_size=I).losses == [] and GRU(U, input_size=I).regularization_loss() == 0


def test_constraints_act_after_the_step_only():
    layer = GRU(U, input_size=I, kernel_constraint="non_neg", bias_constraint="non_neg")
    before = layer.kernel.detach().clone()
    layer(torch.randn(B, T, I)).sum().backward()
    assert torch.equal(layer.kernel, before)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = layer.apply_constraints_after(optimizer)
    optimizer.step()
    assert (layer.kernel >= 0).all() and (layer.bias >= 0).all() and (layer.recurrent_kernel < 0).any()
    handle.remove()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"reset_after": False}, {"use_bias": False}, {"dropout": 0.5}, {"dropout": 0.3, "recurrent_dropout": 0.3}],
    ids=str,
)
def test_cell_steps_equal_the_layer(arguments):
    cell = GRUCell(U, input_size=I, bias_initializer="glorot_uniform", **arguments)
    x = torch.randn(B, T, I)
    state = cell.get_initial_state(x)
    assert torch.equal(state, torch.zeros(B, U))
    for t in range(T):
        output, [state] = cell(x[:, t], [state], training=True)
        assert torch.equal(output, state) and output.data_ptr() != state.data_ptr()
    masks = {
        "input_dropout": cell.get_dropout_mask_for_cell(x[:, 0], True),
        "recurrent_dropout": cell.get_recurrent_dropout_mask_for_cell(state, True),
    }
    for key, mask in masks.items():
        if key == "input_dropout" and mask is not None:
            masks[key] = [m[:, None] for m in (mask if isinstance(mask, list) else [mask])]
    _, expected = tritongru.gru(x, cell.kernel, cell.recurrent_kernel, cell.bias, reset_after=cell.reset_after, **masks)
    torch.testing.assert_close(state, expected)
    assert GRUCell.from_config(cell.get_config()).get_config() == cell.get_config()
    with pytest.raises(ValueError, match=r"`states`.*\(3, 4\), got \(1, 4\)"):
        cell(x[:, 0], torch.zeros(1, U))


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional_outputs(mode, sequences):
    layer = Bidirectional(GRU(U, return_sequences=sequences, return_state=True), merge_mode=mode)
    x, states = torch.randn(B, T, I), [torch.randn(B, U), torch.randn(B, U)]
    result = layer(x, mask=MASK, initial_state=states)
    f, h_f = layer.forward_layer(x, mask=MASK, initial_state=states[0])
    b, h_b = layer.backward_layer(x, mask=MASK, initial_state=states[1])
    b = b.flip(1) if sequences else b
    merged = {"concat": torch.cat([f, b], -1), "sum": f + b, "mul": f * b, "ave": (f + b) / 2}.get(mode)
    expected = (f, b, h_f, h_b) if mode is None else (merged, h_f, h_b)
    assert isinstance(result, tuple) and len(result) == len(expected)
    for actual, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    assert [tuple(s) for s in layer.compute_output_shape((B, T, I))] == [tuple(r.shape) for r in result]
    assert torch.equal(layer([x, *states], mask=MASK)[0], result[0])
    if sequences:
        assert not f[:, 5][:1].any(), "masked steps are zeros inside Bidirectional"


def test_bidirectional_layers():
    inner = GRU(U, input_size=I, zero_output_for_mask=True, stateful=True)
    layer = Bidirectional(inner)
    assert not torch.equal(layer.forward_layer.kernel, inner.kernel)
    assert layer.backward_layer.go_backwards and not layer.forward_layer.zero_output_for_mask
    assert [w.shape for w in layer.get_weights()] == [(I, 12), (U, 12), (2, 12)] * 2
    layer.set_weights([w + 1 for w in layer.get_weights()])
    layer(torch.randn(B, T, I))
    assert len(layer.states) == 2
    layer.reset_states()
    assert not layer.states[0].any() and not layer.states[1].any()
    assert Bidirectional.from_config(layer.get_config()).get_config() == layer.get_config()
    copy.deepcopy(layer)
    own = GRU(U, go_backwards=True, input_size=I)
    assert Bidirectional(GRU(U), backward_layer=own).backward_layer is own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bidirectional("forwards"), "`layer`.*'forwards'"),
        (lambda: Bidirectional(GRU(U), backward_layer=3), "`backward_layer`.*3"),
        (lambda: Bidirectional(GRU(U), merge_mode="x"), "Invalid merge mode.*'x'"),
        (lambda: Bidirectional(GRU(U), backward_layer=GRU(U)), "different `go_backwards`.*False"),
        (
            lambda: Bidirectional(GRU(U), backward_layer=GRU(U, go_backwards=True, return_state=True)),
            "same value for `return_state`, got False and True",
        ),
        (
            lambda: Bidirectional(GRU(U), "ave", GRU(U + 2, go_backwards=True)),
            "`merge_mode`='ave'.*units=4, .*units=6",
        ),
    ],
)
def test_bidirectional_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("mode", ["concat", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional_of_unequal_sizes(mode, sequences):
    options = dict(return_sequences=sequences, return_state=True)
    layer = Bidirectional(GRU(U, **options), mode, GRU(U + 2, go_backwards=True, **options))
    result = layer(torch.randn(B, T, I))
    assert result[0].shape[-1] == (U if mode is None else 2 * U + 2)
    assert [tuple(s) for s in layer.compute_output_shape((B, T, I))] == [tuple(r.shape) for r in result]


@pytest.mark.parametrize("backwards", [False, True])
def test_jagged_equals_padded_and_rows_by_themselves(backwards):
    layer = random_layer(return_sequences=True, return_state=True, go_backwards=backwards)
    rows = [torch.randn(n, I) for n in (3, 1, 5)]
    y, state = layer(torch.nested.nested_tensor(rows, layout=torch.jagged))
    assert y.is_nested
    for i, row in enumerate(rows):
        expected, last = layer(row[None])
        torch.testing.assert_close(y[i], expected[0])
        torch.testing.assert_close(state[i], last[0])


def test_jagged_bidirectional_and_errors():
    rows = [torch.randn(n, I) for n in (3, 1, 5)]
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    layer = Bidirectional(random_layer(return_sequences=True))
    y = layer(x)
    for i, row in enumerate(rows):
        torch.testing.assert_close(y[i], layer(row[None])[0])
    for name in ("unroll", "time_major"):
        with pytest.raises(ValueError, match=f"`{name}=True`.*jagged"):
            GRU(U, **{name: True})(x)


@pytest.mark.parametrize(
    "arguments", [{}, {"return_sequences": True, "return_state": True, "go_backwards": True},
                  {"dtype": "mixed_bfloat16"}, {"stateful": True}], ids=str)  # fmt: skip
def test_compiles_without_breaks(arguments):
    torch._dynamo.reset()
    layer = GRU(U, **arguments)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(B, T, I)
    actual = compiled(x, mask=MASK)
    if layer.stateful:
        layer.reset_states()
    assert layer.last_decision is None
    torch.testing.assert_close(actual, layer(x, mask=MASK))


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("sequences", [False, True])
def test_other_sizes_do_not_recompile(sequences):
    torch._dynamo.reset()
    layer = Bidirectional(GRU(U, input_size=I, return_sequences=sequences, dropout=0.5))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, time in ((3, 6), (5, 4), (4, 9)):
        x, mask = torch.randn(batch, time, I), torch.rand(batch, time) < 0.7
        torch.testing.assert_close(compiled(x, mask=mask, training=False), layer(x, mask=mask, training=False))


def test_functional_forms():
    layer = random_layer(return_sequences=True, dtype="float64")
    parameters, x = dict(layer.named_parameters()), torch.randn(B, T, I, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters, x)
    layer(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_export():
    layer = random_layer(return_sequences=True)
    batch, time = torch.export.Dim("B", min=2, max=64), torch.export.Dim("T", min=2, max=512)
    program = torch.export.export(layer, (torch.randn(B, T, I),), dynamic_shapes=({0: batch, 1: time},))
    x = torch.randn(5, 9, I)
    torch.testing.assert_close(program.module()(x), layer(x))
