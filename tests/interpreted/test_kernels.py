"""Every Triton kernel against the float64 oracle, outputs and each gradient by name, in Triton's interpreter."""

import itertools
import random

import pytest
import torch

import tritongru
from tritongru.activations import TABLE
from tritongru.backends.triton.scan import use_config
from tritongru.environment import is_interpreted
from tritongru.reference import gru_reference
from tritongru.tools.oracle import cases, tolerance
from tritongru.tuning.configs import SCHEDULES, LaunchConfig, next_power_of_two

ACTIVATIONS = [entry.name for entry in TABLE.values() if entry.kernel_id is not None]
DEVICE = "cpu" if is_interpreted() else "cuda"
SIZES = [(1, 1, 1, 1), (3, 7, 5, 9), (1, 5, 2, 16), (17, 2, 3, 33), (2, 1, 4, 50)]  # B, T, I, U


def config_for(schedule: str, units: int) -> LaunchConfig:
    """The interpreter runs one program after another, so there one program holds all units of a waiting schedule."""
    whole = next_power_of_two(units)
    owned = whole if is_interpreted() else 16
    return {
        "single": LaunchConfig("single", 16, whole, whole),
        "persistent": LaunchConfig("persistent", 16, owned, 16),
        "streamed": LaunchConfig("streamed", 16, owned, 16),
        "steps": LaunchConfig("steps", 16, 16, 16),
    }[schedule]


def draw(size, seed, *, reset_after=True, layout="keras", drops=0, masked=False, resets=None, bias=True, **flags):
    """Return arguments of `gru` in float64 and the gradient's leaves by name."""
    B, T, I, U = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3).requires_grad_()

    a = {"x": normal(B, T, I), "initial_state": normal(B, U)}
    if layout == "keras":
        a |= {"kernel": normal(I, 3 * U), "recurrent_kernel": normal(U, 3 * U)}
        a["bias"] = None if not bias else normal(2, 3 * U) if reset_after else normal(3 * U)
    else:
        a |= {"kernel": normal(3 * U, I), "recurrent_kernel": normal(3 * U, U)}
        a["bias"] = (normal(3 * U), normal(3 * U)) if bias else None
    if masked:
        a["mask"] = torch.rand(B, T, generator=generator) < 0.6
    if resets is not None:
        a["resets"] = torch.rand(B, T, generator=generator) < 0.3
        a["reset_state"] = {"zeros": None, "initial": "initial", "row": normal(B, U), "step": normal(B, T, U)}[resets]
    if drops:
        masks = tuple(normal(B, U) for _ in range(drops))
        a["recurrent_dropout"] = masks if drops == 3 else masks[0]
    return a | {"reset_after": reset_after, "layout": layout} | flags


def cast(arguments, dtype):
    def one(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(DEVICE, dtype).requires_grad_()
        if isinstance(value, torch.Tensor):
            return value.to(DEVICE)
        return tuple(map(one, value)) if isinstance(value, tuple) else value

    return {name: one(value) for name, value in arguments.items()}


def results(function, arguments, **options):
    """Return outputs, state and every gradient by name."""
    leaves = {}
    for name, value in arguments.items():
        for i, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(item, torch.Tensor) and item.requires_grad:
                leaves[f"d_{name}[{i}]"] = item
    outputs, state = function(**arguments, **options)
    generator = torch.Generator().manual_seed(99)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)).sum()
        for value in (outputs, state)
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {"outputs": outputs, "state": state}
    return found | {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None}


def check(arguments, dtype=torch.float32, schedule="single", **options):
    units = arguments["initial_state"].shape[1]
    rounded = cast(arguments, dtype)
    truth = results(gru_reference, cast(rounded, torch.float64))
    oracle = results(gru_reference, cast(rounded, dtype))
    with use_config(config_for(schedule, units)):
        actual = results(tritongru.gru, cast(rounded, dtype), backend="triton", **options)
    for name in actual.keys() - truth.keys():  # the oracle's loop never touched it: T is 0
        assert not actual[name].any(), name
    for name, right in truth.items():
        tolerance.check(name, actual[name], oracle[name], right)


CELLS = [(True, None), (False, 0.2), (True, 0.2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("zoneout, bound", CELLS)
def test_zoneout_and_a_bound_of_the_gradient(zoneout, bound, reset_after, schedule):
    # Half of the flags, in which each two of them meet in every way; the next kind of cell meets the other half.
    half = (CELLS.index((zoneout, bound)) + reset_after) % 2
    for seed, (mask, resets, drops) in enumerate(itertools.product((False, True), (False, True), (0, 3))):
        if (mask + resets + bool(drops)) % 2 != half:
            continue
        case = cases.Case(
            17 if seed == 3 else 3, 4, 3, 9, ("float32", "bfloat16")[seed % 2], seed, reset_after=reset_after,
            layout=("keras", "torch")[seed % 2], go_backwards=seed % 3 == 1, mask=mask, resets=resets,
            reset_state="steps" if resets else None, recurrent_dropouts=drops, zoneout=zoneout, gradient_clip=bound,
            recompute=seed % 4 == 2, recurrent_activation=("sigmoid", "softsign", "tanh")[seed % 3],
        )  # fmt: skip
        arguments = cases.make_arguments(case, DEVICE)
        if zoneout and seed % 4 == 1:
            arguments["zoneout"] = torch.tensor(0.75, dtype=torch.float64)
            arguments["zoneout"] = arguments["zoneout"].to(arguments["recurrent_kernel"])
        truth = cases.run_case(cases.in_dtype(arguments, torch.float64), "reference")
        oracle = cases.run_case(arguments, "reference")
        with use_config(config_for(schedule, 9)):
            actual = cases.run_case(arguments, "triton")
        for name, right in truth.items():
            tolerance.check(f"{case}: {name}", actual[name], oracle[name], right)


def test_a_gradient_of_zoneout_has_a_reason():
    arguments = draw((2, 3, 2, 4), 0, zoneout=torch.rand(2, 3, 4, dtype=torch.float64).requires_grad_())
    arguments = cast(arguments, torch.float32)
    with pytest.raises(tritongru.UnsupportedError, match="zoneout whose gradient is wanted"):
        tritongru.gru(**arguments, backend="triton")


def label(size):
    return "B{}-T{}-I{}-U{}".format(*size)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("layout", ["keras", "torch"])
@pytest.mark.parametrize("size", SIZES, ids=label)
def test_sizes(size, layout, reset_after, schedule):
    check(draw(size, 1, layout=layout, reset_after=reset_after), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_half_precision(reset_after, dtype, schedule):
    check(draw((3, 6, 4, 19), 2, reset_after=reset_after, masked=True, resets="row"), dtype, schedule)


FLAGS = [
    {"reset_after": after, "layout": layout, "go_backwards": back, "masked": masked, "resets": resets, "drops": drops}
    for after, layout, back, masked, resets, drops in itertools.product(
        (True, False), ("keras", "torch"), (False, True), (False, True),
        (None, "zeros", "initial", "row", "step"), (0, 1, 3),
    )
]  # fmt: skip
# Every pair of flags appears many times over; the order is fixed by the seed.
random.Random(0).shuffle(FLAGS)


@pytest.mark.parametrize("number", range(120))
def test_flags(number):
    flags = dict(FLAGS[number])
    extra = {"bias": number % 5 > 0, "zero_output_for_mask": number % 2 == 1}
    size = SIZES[1:][number % 4]
    check(draw(size, number, **flags, **extra), schedule=SCHEDULES[number // 4 % 4], recompute=number % 3 == 0)


@pytest.mark.parametrize("recurrent_activation", ["sigmoid", "hard_sigmoid", "linear", "softsign"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, recurrent_activation):
    for reset_after in (True, False):
        check(
            draw((2, 4, 3, 5), 3, reset_after=reset_after, activation=activation,
                 recurrent_activation=recurrent_activation, masked=True)
        )  # fmt: skip


@pytest.mark.bits
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_repeated_runs_give_the_same_bits(schedule):
    arguments = cast(draw((17, 5, 3, 33), 4, masked=True, resets="row"), torch.float32)
    with use_config(config_for(schedule, 33)):
        first = results(tritongru.gru, arguments, backend="triton")
        again = results(tritongru.gru, arguments, backend="triton")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_inputs_are_left_alone():
    arguments = cast(draw((3, 4, 2, 9), 5, resets="row", masked=True), torch.float32)
    before = {n: v.detach().clone() for n, v in arguments.items() if isinstance(v, torch.Tensor)}
    results(tritongru.gru, arguments, backend="triton")
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


@pytest.mark.skipif(not is_interpreted(), reason="about the interpreter")
def test_auto_does_not_choose_the_interpreter():
    a = cast(draw((1, 2, 2, 2), 6), torch.float32)
    outputs, _ = tritongru.gru(**a)
    torch.testing.assert_close(outputs, gru_reference(**a)[0])


@pytest.mark.parametrize("size", [(0, 3, 2, 4), (2, 0, 2, 4)], ids=label)
def test_empty(size):
    check(draw(size, 7))


def test_the_triton_path_really_runs(monkeypatch):
    """A spy on the launch: a silent fallback would make every test above meaningless."""
    from tritongru.backends.triton import scan as launch

    calls = []
    monkeypatch.setattr(launch, "scan_forward", lambda *a, _f=launch.scan_forward: calls.append(1) or _f(*a))
    tritongru.gru(**cast(draw((1, 2, 2, 2), 8), torch.float32), backend="triton")
    assert calls == [1]


def test_second_derivative_through_the_kernels():
    a = draw((2, 3, 2, 3), 9, masked=True, resets="row")
    a = cast(a, torch.float32)

    def penalty(function, **options):
        outputs, _ = function(**a, **options)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), a["x"], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [a["recurrent_kernel"], a["x"]])

    for ours, right in zip(penalty(tritongru.gru, backend="triton"), penalty(gru_reference), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
