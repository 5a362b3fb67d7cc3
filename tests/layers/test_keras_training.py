"""What the tests of Keras do with `fit`: layers in models that train, on padded data, stacked, stateful."""

import pytest
import torch

from tritongru.keras import GRU, Bidirectional

B, T, I, U = 8, 6, 3, 5


def train(model, batches, steps=30, lr=0.05):
    """Fit `model` to `batches` of (arguments, target); return the loss before and after."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        for arguments, target in batches:
            loss = (model(*arguments) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[0], losses[-1]


class Tagger(torch.nn.Module):
    """Embedding, two stacked GRUs under one mask, and a linear layer on the last output."""

    def __init__(self, **options):
        super().__init__()
        self.embed = torch.nn.Embedding(10, I)
        self.first = GRU(U, input_size=I, return_sequences=True, **options)
        self.second = GRU(U, input_size=U, **options)
        self.head = torch.nn.Linear(U, 1)

    def forward(self, tokens):
        mask = tokens != 0
        hidden = self.first(self.embed(tokens), mask=mask)
        return self.head(self.second(hidden, mask=self.first.compute_mask(tokens, mask)))


@pytest.mark.parametrize("options", [{}, {"reset_after": False}, {"dropout": 0.1, "recurrent_dropout": 0.1}], ids=str)
def test_a_stack_under_a_mask_trains(options):
    tokens = torch.randint(1, 10, (B, T)) * (torch.arange(T) < torch.randint(2, T + 1, (B, 1)))
    first, last = train(Tagger(**options), [((tokens,), torch.randn(B, 1))])
    assert last < 0.7 * first


def test_the_last_batch_may_be_smaller_and_another_length():
    layer = GRU(1, input_size=I)
    batches = [((torch.randn(n, steps, I),), torch.full((n, 1), 0.5)) for n, steps in ((8, 6), (8, 6), (3, 6), (8, 2))]
    first, last = train(layer, batches, steps=10)
    assert last < first


def test_a_stateful_layer_trains_over_several_calls():
    layer = GRU(1, input_size=I, stateful=True, return_sequences=True)
    first, last = train(layer, [((torch.randn(B, T, I),), torch.full((B, T, 1), 0.3))])
    assert last < first and layer.states[0].abs().sum() > 0


@pytest.mark.parametrize("mask", [False, True])
def test_backends_agree_before_and_after_training(mask):
    x, target = torch.randn(B, T, I, dtype=torch.float64), torch.randn(B, U, dtype=torch.float64)
    steps = torch.arange(T) < torch.randint(1, T + 1, (B, 1)) if mask else None
    results, start = [], None
    for backend in ("reference", "eager") + (() if mask else ("aten",)):
        layer = GRU(U, input_size=I, dtype="float64", backend=backend)
        start = start or layer.get_weights()
        layer.set_weights(start)
        before = layer(x, mask=steps).detach()
        train(layer, [((x, steps), target)], steps=10)
        results.append((before, layer(x, mask=steps).detach()))
    for before, after in results[1:]:
        torch.testing.assert_close(before, results[0][0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(after, results[0][1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_masked_sequence_equals_the_shorter_one(time_major, backwards):
    layer = GRU(U, input_size=I, return_sequences=True, go_backwards=backwards, time_major=time_major)
    x, padding = torch.randn(B, T, I), torch.randn(B, 2, I)
    mask = torch.arange(T + 2).expand(B, -1) < T
    whole = torch.cat([x, padding], 1)
    turn = (lambda v: v.transpose(0, 1)) if time_major else (lambda v: v)
    outputs = turn(layer(turn(whole), mask=turn(mask)))
    expected = turn(layer(turn(x)))
    torch.testing.assert_close(outputs[:, 2:] if backwards else outputs[:, :T], expected)


def test_states_of_one_layer_begin_the_next():
    encoder, decoder = GRU(U, input_size=I, return_state=True), GRU(U, input_size=I)
    x, y = torch.randn(B, T, I), torch.randn(B, T, I)
    _, state = encoder(x)
    assert not torch.equal(decoder(y, initial_state=state), decoder(y))
    decoder(y, initial_state=state).sum().backward()
    assert encoder.kernel.grad.any()
    both = Bidirectional(GRU(U, input_size=I, return_state=True))
    _, *states = both(x)
    again = Bidirectional(GRU(U, input_size=I))
    assert not torch.equal(again(y, initial_state=states), again(y))


def test_weights_that_ask_for_a_gradient_are_counted():
    layer, both = GRU(U, input_size=I), Bidirectional(GRU(U, input_size=I))
    for one, count in ((layer, 3), (both, 6)):
        assert len(one.weights) == len(one.trainable_weights) == count and one.non_trainable_weights == []
        one.trainable = False
        assert one.trainable_weights == [] and len(one.non_trainable_weights) == count
        one.trainable = True
        assert len(one.trainable_weights) == count and one.trainable
    assert both.count_params() == 2 * layer.count_params() == 2 * (3 * U * (I + U) + 6 * U)
    with pytest.raises(ValueError, match="not built"):
        GRU(U).count_params()


def test_initial_states_are_zeros():
    for layer, shape in ((GRU(U), (B, T, I)), (GRU(U, time_major=True), (T, B, I))):
        (state,) = layer.get_initial_state(torch.randn(shape))
        assert torch.equal(state, torch.zeros(B, U))


def test_recurrent_dropout_goes_with_a_kept_state_and_a_file(tmp_path):
    layer = GRU(U, input_size=I, stateful=True, recurrent_dropout=0.3, dropout=0.3)
    x = torch.randn(B, T, I)
    assert not torch.equal(layer(x), layer(x))
    torch.save(layer.state_dict(), tmp_path / "m.pt")
    again = GRU(U, input_size=I)
    again.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    torch.testing.assert_close(
        again(x), GRU.from_config({**layer.get_config(), "weights": layer.get_weights()})(x, training=False)
    )
