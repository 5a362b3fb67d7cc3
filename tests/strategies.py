"""Whole configurations of a GRU call, drawn by hypothesis: a frozen record of plain values that JSON can hold.

A configuration says what is called and how each tensor lies in memory; its numbers follow from its seed. So a failure
is one line of tests/regressions.json, and means the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from operator import itemgetter

import torch
from hypothesis import strategies as st
from torch import Tensor

from tritongru.activations import TABLE
from tritongru.call.arguments import LayerNorm
from tritongru.tools.oracle.cases import DTYPES

# How a tensor lies in memory, each made from a base of its own by views.
VIEWS = ("contiguous", "transposed", "sliced", "offset", "expanded", "zero_stride")
SCANNED = tuple(entry.name for entry in TABLE.values() if entry.derivative is not None)
# Their derivatives jump, so rounding in half precision may land on the other side of the jump.
JUMPING = ("relu", "leaky_relu", "hard_sigmoid", "selu")


@dataclass(frozen=True)
class Configuration:
    """One call of `tritongru.gru`, or of `tritongru.scan` where `gates` are given in place of x and its product.

    Attributes:
        mask: "none", "all" valid, "nothing" valid, "holes" at random, "first" step masked, "rows" wholly masked.
        mask_form: "bool", "int", "float", or "column" for (B,T,1).
        lengths: "none", "random", "zeros" or "full". resets: "none", "random", "all", "first" or "last" step.
        reset_state: "none", "initial", "rows" for (B,U), "steps" for (B,T,U).
        input_dropouts, recurrent_dropouts: how many masks. input_dropout_form: "rows" (B,1,I), "steps" (B,T,I) or
            "shared" (I,).
        initial_state: "none", "rows" (B,U), "one" (1,U) or "vector" (U,).
        views: of x, kernel, recurrent_kernel, bias, initial_state, reset_state; steps_view of mask and resets.
        zoneout: "none", "mask" for one of each unit and step, "mean" for one number.
        wanted: which gradients: "all", "weights", "inputs" or "none". loss: of "both", "outputs" or "state".
        schedule: of the Triton kernels.
    """

    batch: int = 2
    time: int = 3
    input_size: int = 2
    units: int = 3
    dtype: str = "float64"
    seed: int = 0
    spread: float = 1.0
    layout: str = "keras"
    time_major: bool = False
    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    use_bias: bool = True
    initial_state: str = "rows"
    mask: str = "none"
    mask_form: str = "bool"
    lengths: str = "none"
    resets: str = "none"
    reset_state: str = "none"
    input_dropouts: int = 0
    input_dropout_form: str = "rows"
    recurrent_dropouts: int = 0
    zero_output_for_mask: bool = False
    go_backwards: bool = False
    recompute: bool = False
    gates: bool = False
    zoneout: str = "none"
    gradient_clip: float | None = None
    layer_norm: str | None = None
    heads: int = 1
    x_view: str = "contiguous"
    kernel_view: str = "contiguous"
    recurrent_kernel_view: str = "contiguous"
    bias_view: str = "contiguous"
    initial_state_view: str = "contiguous"
    reset_state_view: str = "contiguous"
    steps_view: str = "contiguous"
    wanted: str = "all"
    loss: str = "both"
    schedule: str = "steps"

    def __repr__(self) -> str:
        own = ", ".join(f"{name}={value!r}" for name, value in self.changes().items())
        return f"Configuration({own})"

    def changes(self) -> dict:
        """Return the fields that differ from the defaults: what tests/regressions.json keeps."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def configurations(**fixed) -> st.SearchStrategy[Configuration]:
    """Return a strategy for configurations; `fixed` takes the place of fields, by values or strategies."""
    # Hypothesis shrinks towards the first choice, so that comes first which is plainest.
    view, either = ("contiguous",) * 3 + VIEWS, (False, True)
    choices = dict(
        batch=(1, 2, 3, 0, 5, 17), time=(1, 2, 3, 0, 4, 7, 12), input_size=(1, 2, 3, 5, 0),
        units=(1, 2, 3, 5, 9, 16, 17, 33), dtype=("float64", "float32", "bfloat16", "float16"), spread=(1.0, 0.1, 3.0),
        layout=("keras", "torch"), time_major=either, reset_after=(True, True, False),
        activation=("tanh", "tanh", *SCANNED), recurrent_activation=("sigmoid", "sigmoid", *SCANNED),
        use_bias=(True, False), initial_state=("none", "rows", "one", "vector"),
        mask=("none", "none", "all", "nothing", "holes", "holes", "first", "rows"),
        mask_form=("bool", "int", "float", "column"), lengths=("none", "none", "random", "zeros", "full"),
        resets=("none", "none", "random", "all", "first", "last"), reset_state=("none", "initial", "rows", "steps"),
        input_dropouts=(0, 0, 1, 3), input_dropout_form=("rows", "steps", "shared"), recurrent_dropouts=(0, 0, 1, 3),
        zero_output_for_mask=either, go_backwards=either, recompute=either, x_view=view, kernel_view=view,
        recurrent_kernel_view=view, bias_view=view, initial_state_view=view, reset_state_view=view, steps_view=view,
        gates=(False, False, True), zoneout=("none", "none", "mask", "mean"), gradient_clip=(None, None, None, 0.1),
        layer_norm=(None, None, None, "separate", "joint"), heads=(1, 1, 1, 2, 3),
        wanted=("all", "all", "weights", "inputs", "none"), loss=("both", "both", "outputs", "state"),
        schedule=("steps", "single", "persistent", "streamed"),
    )  # fmt: skip
    drawn = {"seed": st.integers(0, 10**6), **{name: choose(name, values) for name, values in choices.items()}}
    fixed = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    return st.builds(Configuration, **(drawn | fixed)).map(smooth_enough).map(allowed)


def choose(name: str, values: Sequence) -> st.SearchStrategy:
    """Return a strategy for one of `values`, which hypothesis takes for no other field's.

    It varies an example by copying choices between draws from equal values; most draws would differ in views alone.
    """
    return st.sampled_from([(name, value) for value in values]).map(itemgetter(1))


def smooth_enough(c: Configuration) -> Configuration:
    """Return `c`, in float32 where rounding alone could change a derivative by more than rounding.

    And with smaller numbers where a slope that nearly vanishes is taken from the output, whose rounding it has
    (docs/reliability.md, "Configurations tried"). Not a filter: hypothesis would vary the draws that it threw away, and
    so repeat what it kept.
    """
    if c.spread > 1 and {c.activation, c.recurrent_activation} & {"elu", "selu"}:
        c = replace(c, spread=1.0)
    jumps = DTYPES[c.dtype].itemsize == 2 and {c.activation, c.recurrent_activation} & set(JUMPING)
    return replace(c, dtype="float32") if jumps else c


def allowed(c: Configuration) -> Configuration:
    """Return `c`, without a norm where the candidate has no sum of its own, without heads that would not be equal.

    With a norm one program of a kernel holds a whole row.
    """
    c = c if c.reset_after else replace(c, layer_norm=None)
    c = replace(c, schedule="single") if c.layer_norm else c
    return replace(c, heads=1) if c.layer_norm or c.units % c.heads else c


def plain_configurations(**fixed) -> st.SearchStrategy[Configuration]:
    """Return a strategy for the variant that torch's own GRU can run, a rare draw otherwise."""
    plain = dict(
        reset_after=True, activation="tanh", recurrent_activation="sigmoid", mask="none", lengths="none",
        resets="none", recurrent_dropouts=0, recompute=False, gates=False, zoneout="none", gradient_clip=None,
        layer_norm=None, heads=1, input_dropouts=st.sampled_from((0, 1)),
    )  # fmt: skip
    return configurations(**(plain | fixed))


@dataclass
class Leaf:
    """A tensor argument: the base that holds its numbers, and the view of the base that is passed."""

    base: Tensor
    view: Callable[[Tensor], Tensor]


def lay_out(values: Tensor, kind: str) -> Leaf:
    """Return `values` laid out as `kind` says; for "expanded" and "zero_stride" only some of them are kept."""
    if values.dim() == 0 or 0 in values.shape or kind == "contiguous":
        return Leaf(values, lambda base: base)
    last = values.shape[-1]
    if kind == "transposed":
        return Leaf(values.transpose(0, -1).contiguous(), lambda base: base.transpose(0, -1))
    if kind == "sliced":
        # Every second column of a wider tensor, whose other columns are NaN.
        wide = torch.full((*values.shape[:-1], 2 * last + 1), float("nan")).to(values.dtype)
        wide[..., 1::2] = values
        return Leaf(wide, lambda base: base[..., 1::2])
    if kind == "offset":
        wide = torch.full((*values.shape[:-1], last + 3), float("nan")).to(values.dtype)
        wide[..., 2 : 2 + last] = values
        return Leaf(wide, lambda base: base[..., 2 : 2 + last])
    shape = tuple(values.shape)
    if kind == "expanded":
        return Leaf(values[:1].clone(), lambda base: base.expand(shape))
    assert kind == "zero_stride", kind
    return Leaf(values[(slice(0, 1),) * values.dim()].clone(), lambda base: base.expand(shape))


def make_leaves(c: Configuration) -> dict[str, Leaf]:
    """Return every floating argument by name, in the configuration's dtype; bias[0], drop[2] are parts of one."""
    U = c.units
    generator = torch.Generator().manual_seed(c.seed)
    leaves: dict[str, Leaf] = {}

    def normal(*shape: int, spread: float) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread * c.spread).to(c.torch_dtype())

    def dropout(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) < 0.7).to(c.torch_dtype()) * 1.25

    def steps(*rest: int) -> tuple[int, ...]:
        return (c.time, c.batch, *rest) if c.time_major else (c.batch, c.time, *rest)

    own_name, features = ("gates", 3 * U) if c.gates else ("x", c.input_size)
    leaves[own_name] = lay_out(normal(*steps(features), spread=1.0), c.x_view)
    shapes = (
        {"recurrent_kernel": (U, 3 * U)} if c.gates else {"kernel": (features, 3 * U), "recurrent_kernel": (U, 3 * U)}
    )
    if c.heads > 1:
        shapes["recurrent_kernel"] = (c.heads, U // c.heads, 3 * U // c.heads)
    for name, shape in shapes.items():
        values = normal(*shape, spread=max(shape[-2], 1) ** -0.5)
        leaves[name] = lay_out(values.mT.contiguous() if c.layout == "torch" else values, getattr(c, f"{name}_view"))
    if c.use_bias and c.gates:
        leaves["bias"] = lay_out(normal(3 * U, spread=0.3), c.bias_view)
    elif c.use_bias and c.layout == "torch":
        leaves |= {f"bias[{i}]": lay_out(normal(3 * U, spread=0.3), c.bias_view) for i in range(2)}
    elif c.use_bias:
        leaves["bias"] = lay_out(normal(*((2, 3 * U) if c.reset_after else (3 * U,)), spread=0.3), c.bias_view)
    states = {"rows": (c.batch, U), "one": (1, U), "vector": (U,), "steps": steps(U)}
    if c.initial_state != "none":
        leaves["initial_state"] = lay_out(normal(*states[c.initial_state], spread=0.5), c.initial_state_view)
    if c.resets != "none" and c.reset_state in states:
        leaves["reset_state"] = lay_out(normal(*states[c.reset_state], spread=0.5), c.reset_state_view)
    if c.layer_norm:
        both = c.layer_norm == "separate" and not c.gates
        leaves["scale"] = lay_out(1 + normal(*((2, 3 * U) if both else (3 * U,)), spread=0.2), c.bias_view)
    if c.zoneout != "none":
        whole = (torch.rand(*steps(U), generator=generator) < 0.7).to(c.torch_dtype())
        mean = torch.full((), 0.75, dtype=c.torch_dtype())
        leaves["zoneout"] = lay_out(whole if c.zoneout == "mask" else mean, c.x_view)
    one_step = (1, c.batch, c.input_size) if c.time_major else (c.batch, 1, c.input_size)
    forms = {"rows": one_step, "steps": steps(c.input_size), "shared": (c.input_size,)}
    for i in range(0 if c.gates else c.input_dropouts):
        leaves[f"input_dropout[{i}]"] = lay_out(dropout(*forms[c.input_dropout_form]), "contiguous")
    for i in range(c.recurrent_dropouts):
        leaves[f"recurrent_dropout[{i}]"] = lay_out(dropout(c.batch, U), "contiguous")
    return leaves


def make_steps(c: Configuration) -> dict[str, Tensor | str]:
    """Return mask, lengths, resets and the flags of a call."""
    generator = torch.Generator().manual_seed(c.seed + 1)
    B, T = c.batch, c.time

    def chance(p: float) -> Tensor:
        return torch.rand(B, T, generator=generator) < p

    def at(step: int) -> Tensor:
        return torch.arange(T)[None].expand(B, T) == step

    def passed(value: Tensor) -> Tensor:
        value = value.t().contiguous() if c.time_major else value.contiguous()
        return _relay_steps(value, c.steps_view)

    given: dict = {}
    masks = {
        "all": lambda: torch.ones(B, T, dtype=torch.bool),
        "nothing": lambda: torch.zeros(B, T, dtype=torch.bool),
        "holes": lambda: chance(0.6),
        "first": lambda: ~at(0),
        "rows": lambda: chance(0.8) & (chance(0.5)[:, :1]),
    }
    if c.mask != "none":
        mask = passed(masks[c.mask]())
        forms = {"int": lambda m: m.int() * 2, "float": lambda m: m.float() * 0.5, "column": lambda m: m.unsqueeze(2)}
        given["mask"] = forms[c.mask_form](mask) if c.mask_form in forms else mask
    if c.lengths != "none":
        random = torch.randint(0, T + 1, (B,), generator=generator)
        given["lengths"] = {"random": random, "zeros": torch.zeros_like(random), "full": torch.full((B,), T)}[c.lengths]
    resets = {
        "random": lambda: chance(0.3),
        "all": lambda: torch.ones(B, T, dtype=torch.bool),
        "first": lambda: at(0),
        "last": lambda: at(T - 1),
    }
    if c.resets != "none":
        given["resets"] = passed(resets[c.resets]())
        given["reset_state"] = "initial" if c.reset_state == "initial" else None
    flags = ("activation", "recurrent_activation", "reset_after", "zero_output_for_mask", "go_backwards", "time_major",
             "layout", "recompute", "gradient_clip")  # fmt: skip
    return given | {name: asdict(c)[name] for name in flags}


def _relay_steps(value: Tensor, kind: str) -> Tensor:
    if kind in ("sliced", "offset") and value.numel():
        wide = torch.ones(value.shape[0], 2 * value.shape[1] + 3, dtype=torch.bool)
        step = 2 if kind == "sliced" else 1
        view = wide[:, 1 : 1 + step * value.shape[1] : step]
        view.copy_(value)
        return view
    if kind in ("expanded", "zero_stride"):
        return value[:1].expand(value.shape)
    return value.t().contiguous().t() if kind == "transposed" else value


def call_arguments(c: Configuration, tensors: dict[str, Tensor]) -> dict:
    """Return the keyword arguments of `tritongru.gru`, or of `scan` where it has gates, with `tensors` in place.

    Those are by the names of `make_leaves`.
    """
    arguments: dict = {"bias": None, "initial_state": None, **make_steps(c)}
    tensors = dict(tensors)
    if c.layer_norm:
        arguments["layer_norm"] = LayerNorm(c.layer_norm, tensors.pop("scale"))
    parts: dict[str, list[Tensor]] = {}
    for name, value in tensors.items():
        whole, bracket, _ = name.partition("[")
        if bracket:
            parts.setdefault(whole, []).append(value)
        else:
            arguments[name] = value
    for name, values in parts.items():
        arguments[name] = values[0] if len(values) == 1 else tuple(values)
    return arguments
