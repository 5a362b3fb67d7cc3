"""`tritongru.Bidirectional`: subclasses, initial weights, frozen halves; constraints of frozen weights."""

import numpy as np
import pytest
import torch

from tritongru import GRU, Bidirectional


class Doubled(GRU):
    """A GRU of twice its input."""

    def forward(self, inputs, *arguments, **options):
        return super().forward(2 * inputs, *arguments, **options)


def test_a_subclass_stays_one() -> None:
    layer = Bidirectional(
        Doubled(3, return_sequences=True), backward_layer=Doubled(3, return_sequences=True, go_backwards=True)
    )
    plain = Bidirectional(GRU(3, return_sequences=True))
    x = torch.randn(2, 4, 2)
    layer(x), plain(x)
    plain.set_weights(layer.get_weights())
    torch.testing.assert_close(layer(x), plain(2 * x))
    again = Bidirectional.from_config(layer.get_config(), custom_objects={"Doubled": Doubled})
    assert [type(part) for part in again._parts] == [Doubled, Doubled]
    with pytest.raises(ValueError, match="`layer` is a 'Doubled'; name its class in `custom_objects`"):
        Bidirectional.from_config(layer.get_config())


def test_shape_and_weights_given_at_once() -> None:
    for shape in ({"input_shape": (5, 2)}, {"batch_input_shape": (8, 5, 2)}, {}):
        given = Bidirectional(GRU(3, input_size=2)).get_weights()
        layer = Bidirectional(GRU(3), weights=given, **shape)
        assert layer.forward_layer.built == bool(shape)
        layer(torch.randn(1, 5, 2))
        assert all(map(np.array_equal, layer.get_weights(), given))
    with pytest.raises(TypeError, match="`inputshape`"):
        Bidirectional(GRU(3), inputshape=(5, 2))


def test_a_frozen_half_stays_frozen_alone() -> None:
    layer = Bidirectional(GRU(4), backward_layer=GRU(4, go_backwards=True, trainable=False))
    assert layer.trainable
    again = Bidirectional.from_config(layer.get_config())
    again.build(3)
    assert [w.requires_grad for w in again.weights] == [True] * 3 + [False] * 3
    again.trainable = False
    assert not again.trainable and not again.trainable_weights


def test_frozen_weights_are_not_constrained() -> None:
    layer = GRU(2, input_size=2, kernel_constraint="max_norm", recurrent_constraint="max_norm")
    layer.set_weights([np.full(w.shape, 10.0) for w in layer.get_weights()])
    layer.kernel.requires_grad_(False)
    layer.apply_constraints()
    assert (layer.kernel == 10).all() and (layer.recurrent_kernel < 10).all()
