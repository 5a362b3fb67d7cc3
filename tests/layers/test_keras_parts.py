"""Initializers, regularizers and constraints: Keras's names, formulas and configs."""

import math

import pytest
import torch

from tritongru.keras import constraints, initializers, regularizers

MODULES = {"initializer": initializers, "regularizer": regularizers, "constraint": constraints}
KERNEL = torch.tensor([[3.0, 0.0, -0.2], [4.0, 0.0, 0.1]])


@pytest.mark.parametrize("kind", MODULES)
def test_every_name_serialises_and_comes_back(kind):
    module = MODULES[kind]
    for name in module.TABLE:
        part = module.get(name)
        described = module.serialize(part)
        again = module.deserialize(described)
        assert type(again) is type(part)
        assert again.get_config() == part.get_config() == described["config"]
        assert type(module.get(described)) is type(part)
        assert type(module.get(type(part))) is type(part)


@pytest.mark.parametrize("kind", MODULES)
def test_get_takes_none_and_callables_and_names_what_it_refuses(kind):
    module = MODULES[kind]
    assert module.get(None) is None and module.serialize(None) is None
    assert module.get(torch.relu) is torch.relu
    with pytest.raises(ValueError, match=f"Unknown {kind}: 'nope'"):
        module.get("nope")
    with pytest.raises(ValueError, match="identifier: 3"):
        module.get(3)
    with pytest.raises(ValueError, match="identifier"):
        module.get({"config": {}})
    name = next(iter(module.TABLE))
    with pytest.raises(ValueError, match="'nonsense'"):
        module.get({"class_name": name, "config": {"nonsense": 1}})
    with pytest.raises(ValueError, match="identifier: {'class_name'"):
        module.get({"class_name": name, "config": [1]})
    custom = type("Mine", (), {"__call__": lambda self, x: x})
    assert isinstance(module.deserialize("Mine", {"Mine": custom}), custom)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", initializers.TABLE)
def test_initializer_shape_dtype_and_seed(name, dtype):
    init = initializers.get(name)
    draws = [init((5, 7), dtype=dtype, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert draws[0].shape == (5, 7) and draws[0].dtype == dtype and draws[0].isfinite().all()
    assert torch.equal(*draws)
    assert init((5, 7), device="meta").shape == (5, 7)
    if "seed" in init.get_config():
        seeded = type(init)(seed=3)
        assert torch.equal(seeded((5, 7)), seeded((5, 7)))
        assert not torch.equal(seeded((5, 7)), type(init)(seed=4)((5, 7)))


# Variances of tf.keras.initializers' documented formulas for a (200, 600) weight.
@pytest.mark.parametrize(
    ("name", "variance", "bound"),
    [
        ("glorot_uniform", 2 / 800, math.sqrt(6 / 800)),
        ("glorot_normal", 2 / 800, 2 * math.sqrt(2 / 800) / 0.8796),
        ("he_uniform", 2 / 200, math.sqrt(6 / 200)),
        ("he_normal", 2 / 200, 2 * math.sqrt(2 / 200) / 0.8796),
        ("lecun_uniform", 1 / 200, math.sqrt(3 / 200)),
        ("lecun_normal", 1 / 200, 2 * math.sqrt(1 / 200) / 0.8796),
        ("random_uniform", 0.1**2 / 12, 0.05),
        ("random_normal", 0.05**2, math.inf),
        ("truncated_normal", (0.05 * 0.8796) ** 2, 0.1),
        ("variance_scaling", 1 / 200, 2 * math.sqrt(1 / 200) / 0.8796),
    ],
)
def test_initializer_variance_and_bound(name, variance, bound):
    w = initializers.get(name)((200, 600), generator=torch.Generator().manual_seed(0)).double()
    assert w.var().item() == pytest.approx(variance, rel=0.03)
    assert w.mean().abs().item() < 4 * math.sqrt(variance / w.numel())
    assert w.abs().max().item() <= bound * 1.0001


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (6, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_orthogonal_is_over_the_whole_matrix(shape, dtype):
    w = initializers.Orthogonal(gain=2.0, seed=1)(shape, dtype=dtype).float()
    gram = w @ w.T if shape[0] <= shape[1] else w.T @ w
    torch.testing.assert_close(gram, 4 * torch.eye(min(shape)), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


def test_a_keras_3_description_is_understood():
    config = {"seed": 5, "input_axes": None, "output_axes": None}
    described = {"module": "keras.initializers", "class_name": "GlorotUniform", "config": config}
    assert initializers.get(described).get_config() == {"seed": 5}
    with pytest.raises(ValueError, match="input_axes"):
        initializers.get({"class_name": "GlorotUniform", "config": {"input_axes": 1}})


def test_constant_identity_and_their_errors():
    assert initializers.Constant(0.3)((2,)).tolist() == pytest.approx([0.3, 0.3])
    assert initializers.Constant([1.0, 2.0])((2, 1)).tolist() == [[1.0], [2.0]]
    assert initializers.Identity(gain=3.0)((2, 3)).tolist() == [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
    with pytest.raises(ValueError, match="value"):
        initializers.Constant([1.0, 2.0])((3,))
    with pytest.raises(ValueError, match=r"shape=\(3,\)"):
        initializers.Identity()((3,))
    with pytest.raises(ValueError, match=r"shape=\(3,\)"):
        initializers.Orthogonal()((3,))
    for bad in ({"scale": 0}, {"mode": "fan"}, {"distribution": "cauchy"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            initializers.VarianceScaling(**bad)


def test_regularizer_values_and_gradients():
    w = KERNEL.clone().requires_grad_()
    assert regularizers.L1(0.1)(w).item() == pytest.approx(0.73)
    assert regularizers.L2(0.1)(w).item() == pytest.approx(2.505)
    both = regularizers.L1L2(0.1, 0.2)(w)
    assert both.item() == pytest.approx(0.73 + 5.01)
    both.backward()
    torch.testing.assert_close(w.grad, 0.1 * KERNEL.sign() + 0.4 * KERNEL)
    assert regularizers.get("l1_l2").get_config() == {"l1": 0.009999999776482582, "l2": 0.009999999776482582}
    assert regularizers.L1L2()(w).item() == 0.0
    for bad in ("a", math.nan, True):
        with pytest.raises(ValueError, match="l2"):
            regularizers.L2(bad)


def test_orthogonal_regularizer():
    # Documented example of tf.keras.regularizers.OrthogonalRegularizer: a layer of ones has cosine 1 for every pair.
    ones = torch.ones(3, 4)
    assert regularizers.OrthogonalRegularizer(0.01)(ones).item() == pytest.approx(0.01)
    assert regularizers.OrthogonalRegularizer(0.5, mode="columns")(torch.eye(3)).item() == 0.0
    assert regularizers.OrthogonalRegularizer()(torch.ones(1, 3)).item() == 0.0
    with pytest.raises(ValueError, match="mode='diagonal'"):
        regularizers.OrthogonalRegularizer(mode="diagonal")
    with pytest.raises(ValueError, match=r"\(3,\)"):
        regularizers.OrthogonalRegularizer()(torch.ones(3))


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (constraints.MaxNorm(0.5), [[0.3, 0.0, -0.2], [0.4, 0.0, 0.1]]),
        (constraints.MaxNorm(10.0), KERNEL.tolist()),
        (constraints.NonNeg(), [[3.0, 0.0, 0.0], [4.0, 0.0, 0.1]]),
        (constraints.UnitNorm(), [[0.6, 0.0, -0.2 / math.sqrt(0.05)], [0.8, 0.0, 0.1 / math.sqrt(0.05)]]),
        # Column norms 5, 0, 0.2236: rate 0.5 goes half the way to 1, and to 0.5.
        (constraints.MinMaxNorm(0.5, 1.0, rate=0.5), [[1.8, 0.0, -0.32361], [2.4, 0.0, 0.16180]]),
    ],
    ids=lambda v: repr(v) if callable(v) else "",
)
def test_constraint_values(constraint, expected):
    torch.testing.assert_close(constraint(KERNEL), torch.tensor(expected), atol=2e-5, rtol=1e-5)


def test_constraint_axis_on_a_bias_and_on_pairs():
    assert constraints.UnitNorm()(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8])
    w = torch.randn(2, 3)
    norms = constraints.UnitNorm(axis=1)(w).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2))
    assert constraints.MaxNorm(1.0, axis=(0, 1))(w * 100).norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_radial_constraint_is_constant_on_squares(size):
    w = torch.randn(size, size, 2, 3)
    out = constraints.RadialConstraint()(w)
    assert out.shape == w.shape
    for ring in range(size // 2):
        edge = torch.stack([out[ring, ring], out[ring, size - 1 - ring], out[size - 1 - ring, ring]])
        assert torch.equal(edge, edge[:1].expand_as(edge))
    with pytest.raises(ValueError, match="rank 4"):
        constraints.RadialConstraint()(KERNEL)
