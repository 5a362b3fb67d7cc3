"""Random GRU calls of a given shape and variant, and their outputs and gradients on a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...call.arguments import Arguments, LayerNorm
from ...call.errors import check_units
from ...functional import gru, scan
from .tolerance import MOVES, enlarges_errors, move

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Case:
    """One call, fixed by its description and a seed: the same numbers in every process.

    Attributes:
        mask, resets: whether each step is masked or reset at random. lengths: random lengths, one of them 0.
        reset_state: None, "initial", "rows" for (B,U) or "steps" for (B,T,U).
        input_dropouts, recurrent_dropouts: how many dropout masks, 0, 1 or 3.
        zoneout: a mask for each unit and step. gradient_clip: None, or the bound. layer_norm: None or the kind.
        heads: how many blocks of recurrent weights; divides units.
        gates: a call of `tritongru.scan`, whose input is projected already.
    """

    batch: int = 3
    time: int = 7
    input_size: int = 5
    units: int = 9
    dtype: str = "float32"
    seed: int = 0
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    use_bias: bool = True
    initial_state: bool = True
    mask: bool = False
    lengths: bool = False
    resets: bool = False
    reset_state: str | None = None
    input_dropouts: int = 0
    recurrent_dropouts: int = 0
    zero_output_for_mask: bool = False
    go_backwards: bool = False
    time_major: bool = False
    layout: str = "keras"
    precision: str = "auto"
    recompute: bool = False
    gates: bool = False
    zoneout: bool = False
    gradient_clip: float | None = None
    layer_norm: str | None = None
    heads: int = 1

    def __str__(self) -> str:
        sizes = f"B{self.batch}-T{self.time}-I{self.input_size}-U{self.units}-{self.dtype}"
        default = asdict(Case())
        flags = [
            name if value is True else f"no_{name}" if value is False else f"{name}={value}"
            for name, value in asdict(self).items()
            if value != default[name] and name not in ("batch", "time", "input_size", "units", "dtype", "seed")
        ]
        return "-".join([sizes, *flags])


def make_arguments(case: Case, device: str | torch.device = "cpu") -> dict:
    """Return the keyword arguments of `tritongru.gru`, or of `scan`, for `case`.

    Floating tensors are rounded to the case's dtype. Weights are drawn so that pre-activations have a spread of about
    one, whatever the sizes.
    """
    c, U = case, check_units(case.units)
    generator = torch.Generator().manual_seed(c.seed)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * spread
        return values.to(device, DTYPES[c.dtype])

    def chance(*shape: int, p: float) -> Tensor:
        return (torch.rand(*shape, generator=generator) < p).to(device)

    def dropout(count: int, *shape: int) -> list[Tensor]:
        # A keep rate of 0.8 and its scale 1.25, which every dtype holds exactly.
        return [chance(*shape, p=0.8).to(DTYPES[c.dtype]) * 1.25 for _ in range(count)]

    steps = (c.time, c.batch) if c.time_major else (c.batch, c.time)
    kernel = normal(c.input_size, 3 * U, spread=max(c.input_size, 1) ** -0.5)
    recurrent = normal(U, 3 * U, spread=U**-0.5)
    if c.heads > 1:
        recurrent = normal(c.heads, U // c.heads, 3 * U // c.heads, spread=(U // c.heads) ** -0.5)
    arguments: dict = dict(x=normal(*steps, c.input_size), kernel=kernel, recurrent_kernel=recurrent, bias=None)
    if c.layout == "torch":
        arguments |= dict(kernel=kernel.t().contiguous(), recurrent_kernel=recurrent.mT.contiguous())
    if c.use_bias:
        both = normal(2, 3 * U, spread=0.3)
        arguments["bias"] = (both[0].clone(), both[1].clone()) if c.layout == "torch" else both
        if c.layout == "keras" and not c.reset_after:
            arguments["bias"] = both[0].clone()
    if c.initial_state:
        arguments["initial_state"] = normal(c.batch, U, spread=0.5)
    if c.mask:
        arguments["mask"] = chance(*steps, p=0.7)
    if c.lengths:
        lengths = torch.randint(0, c.time + 1, (c.batch,), generator=generator)
        lengths[:1] = 0
        arguments["lengths"] = lengths.to(device)
    if c.resets:
        arguments["resets"] = chance(*steps, p=0.3)
        shapes = {"rows": (c.batch, U), "steps": (*steps, U)}
        given = normal(*shapes[c.reset_state], spread=0.5) if c.reset_state in shapes else c.reset_state
        arguments["reset_state"] = given
    if c.input_dropouts:
        drops = dropout(c.input_dropouts, *((1, c.batch) if c.time_major else (c.batch, 1)), c.input_size)
        arguments["input_dropout"] = drops if len(drops) > 1 else drops[0]
    if c.recurrent_dropouts:
        drops = dropout(c.recurrent_dropouts, c.batch, U)
        arguments["recurrent_dropout"] = drops if len(drops) > 1 else drops[0]
    if c.zoneout:
        arguments["zoneout"] = chance(*steps, U, p=0.6)
    if c.layer_norm:
        both = c.layer_norm == "separate" and not c.gates
        scale = 1 + normal(*((2, 3 * U) if both else (3 * U,)), spread=0.3)
        arguments["layer_norm"] = LayerNorm(c.layer_norm, scale)
    if c.gates:
        del arguments["kernel"], arguments["x"]
        arguments.pop("input_dropout", None)
        arguments["gates"] = normal(*steps, 3 * U)
        if c.use_bias:
            arguments["bias"] = normal(3 * U, spread=0.3)
    same = ("activation", "recurrent_activation", "reset_after", "zero_output_for_mask", "go_backwards", "time_major",
            "layout", "precision", "recompute", "gradient_clip")  # fmt: skip
    return arguments | {name: getattr(c, name) for name in same}


def as_arguments(arguments: dict) -> Arguments:
    """Return the keyword arguments of `gru` or `scan` as one value."""
    named = dict(arguments)
    if "gates" in named:
        named |= {"x": named.pop("gates"), "kernel": None}
    return Arguments(**named)


def in_dtype(arguments: dict, dtype: torch.dtype) -> dict:
    """Return `arguments` with every floating tensor in `dtype`."""
    return _change(arguments, lambda value: value.to(dtype))


def moved_arguments(arguments: dict) -> list[dict]:
    """Return float64 arguments one rounding away from `arguments`, several draws; none where no error is enlarged.

    Each number is moved by half of its dtype's spacing at one, which is what rounding to the nearest may change.
    """
    # A norm divides by a row's spread, which may be small.
    if not enlarges_errors(arguments["recurrent_activation"]) and arguments.get("layer_norm") is None:
        return []
    half = torch.finfo(arguments["recurrent_kernel"].dtype).eps / 2
    generators = [torch.Generator().manual_seed(number) for number in range(MOVES)]
    return [_change(arguments, lambda value, g=g: move(value, half, g)) for g in generators]


def _change(arguments: dict, function: Callable[[Tensor], Tensor]) -> dict:
    """Return `arguments` with `function` applied to every floating tensor."""

    def change(value):
        if isinstance(value, Tensor):
            return function(value) if value.is_floating_point() else value
        if isinstance(value, LayerNorm):
            return value._replace(scale=change(value.scale))
        if isinstance(value, (tuple, list)):
            return type(value)(change(item) for item in value)
        return value

    return {name: change(value) for name, value in arguments.items()}


def differentiated(arguments: dict) -> dict[str, Tensor]:
    """Return the tensors a gradient is asked for, by name; a pair of biases is bias[0] and bias[1]."""
    tensors = {}
    for name in ("x", "gates", "kernel", "recurrent_kernel", "bias", "initial_state", "reset_state"):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, (tuple, list)):
            tensors |= {f"{name}[{i}]": item for i, item in enumerate(value)}
    if arguments.get("layer_norm") is not None:
        tensors["scale"] = arguments["layer_norm"].scale
    return tensors


def run_case(arguments: dict, backend: str, seed: int = 0) -> dict[str, Tensor]:
    """Return the outputs, the final state and every gradient of one call, by name.

    Args:
        arguments: those of `tritongru.gru`, or of `tritongru.scan` if "gates" is among them.
        seed: of the random cotangents of outputs and state.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in differentiated(arguments).items()}
    call = dict(arguments)
    for name in leaves.keys() - {"scale"}:
        call[name.partition("[")[0]] = leaves[name]
    if "scale" in leaves:
        call["layer_norm"] = call["layer_norm"]._replace(scale=leaves["scale"])
    if "bias[0]" in leaves:
        call["bias"] = (leaves["bias[0]"], leaves["bias[1]"])
    outputs, state = (scan if "gates" in call else gru)(**call, backend=backend)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs_dtype = arguments["recurrent_kernel"].dtype

    def cotangent(like: Tensor) -> Tensor:
        # Halves and quarters, so that a cotangent is the same number in every dtype.
        values = torch.randint(-8, 9, like.shape, generator=generator, dtype=torch.float64) / 8
        return values.to(like.device, inputs_dtype)

    pairs = [(value, cotangent(value)) for value in (outputs, state)]
    # With no steps or no rows an output may be a constant.
    pairs = [(value, given) for value, given in pairs if value.requires_grad]
    gradients = torch.autograd.grad(
        [value for value, _ in pairs],
        list(leaves.values()),
        [given for _, given in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    results = {"outputs": outputs.detach(), "state": state.detach()}
    return results | {f"d {name}": value for name, value in zip(leaves, gradients, strict=True)}
