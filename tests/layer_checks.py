"""Whole configurations of the layers, and what must hold for each: compat.GRU against nn.GRU, laws of tritongru.GRU."""

from __future__ import annotations

from dataclasses import dataclass, fields
from unittest import mock

import torch
from hypothesis import strategies as st
from strategies import choose
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritongru
from tritongru import compat, dispatch

F64 = torch.float64
PRECISE = dict(rtol=1e-9, atol=1e-10)
EITHER = (False, True)


class _Changes:
    """A record that can say how it differs from its defaults, for tests/regressions.json."""

    def changes(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.changes().items())})"


@dataclass(frozen=True, repr=False)
class DropInCall(_Changes):
    """One call of compat.GRU.

    Attributes:
        form: "padded", "packed" (sorted or not), "lengths" or "unbatched". at_once: numba runs both directions at once,
            as it would in a larger call.
    """

    batch: int = 2
    time: int = 3
    input_size: int = 2
    units: int = 3
    layers: int = 1
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    form: str = "padded"
    has_state: bool = False
    at_once: bool = False
    backend: str = "auto"
    seed: int = 0


drop_in_calls = st.builds(
    DropInCall, batch=choose("batch", (1, 2, 3, 5)), time=choose("time", (1, 2, 3, 7)),
    input_size=choose("input_size", (1, 2, 5)),
    units=choose("units", (1, 3, 9)),
    layers=choose("layers", (1, 2, 3)), bias=choose("bias", EITHER), batch_first=choose("batch_first", EITHER),
    bidirectional=choose("bidirectional", EITHER), at_once=choose("at_once", EITHER),
    form=choose("form", ("padded", "packed", "lengths", "unbatched")), has_state=choose("has_state", EITHER),
    backend=choose("backend", ("auto", "eager", "reference")), seed=st.integers(0, 10**6),
)  # fmt: skip


def check_drop_in(c: DropInCall) -> int:
    """Assert that compat.GRU gives nn.GRU's output, state and gradients, by name."""
    if not c.at_once:
        return _check_drop_in(c)
    dispatch.forget()
    with mock.patch.dict(dispatch.RUNS_AT_ONCE, numba=lambda signature: True):
        compared = _check_drop_in(c)
    dispatch.forget()
    return compared


def _check_drop_in(c: DropInCall) -> int:
    torch.manual_seed(c.seed)
    options = dict(bias=c.bias, batch_first=c.batch_first, bidirectional=c.bidirectional, dtype=F64)
    theirs = nn.GRU(c.input_size, c.units, c.layers, **options)
    ours = compat.GRU(c.input_size, c.units, c.layers, **options, backend=c.backend)
    ours.load_state_dict(theirs.state_dict())
    rows = () if c.form == "unbatched" else (c.batch,)
    x = torch.randn(*((*rows, c.time) if c.batch_first and rows else (c.time, *rows)), c.input_size, dtype=F64)
    hx = torch.randn(c.layers * (1 + c.bidirectional), *rows, c.units, dtype=F64) if c.has_state else None
    lengths = torch.randint(1, c.time + 1, (c.batch,))

    def results(layer: nn.Module, form: str) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        state = None if hx is None else hx.clone().requires_grad_()
        if form == "packed":
            packed, h_n = layer(pack_padded_sequence(leaf, lengths, c.batch_first, enforce_sorted=False), state)
            output, _ = pad_packed_sequence(packed, c.batch_first, total_length=c.time)
        elif form == "lengths":
            output, h_n = layer(leaf, state, lengths=lengths)
        else:
            output, h_n = layer(leaf, state)
        generator = torch.Generator().manual_seed(c.seed)
        loss = sum((v * torch.randn(v.shape, generator=generator, dtype=F64)).sum() for v in (output, h_n))
        wanted = {"x": leaf, **dict(layer.named_parameters())} | ({} if state is None else {"hx": state})
        gradients = torch.autograd.grad(loss, list(wanted.values()))
        found = {"output": output, "h_n": h_n}
        return found | {f"d {name}": value for name, value in zip(wanted, gradients, strict=True)}

    expected = results(theirs, "packed" if c.form == "lengths" else c.form)
    actual = results(ours, c.form)
    for name, right in expected.items():
        torch.testing.assert_close(actual[name], right, **PRECISE, msg=lambda text, name=name: f"{name}: {text}")
    return 1


@dataclass(frozen=True, repr=False)
class LayerCall(_Changes):
    """One tritongru.GRU, one input, and the time step and order of rows that a law needs."""

    batch: int = 2
    time: int = 3
    input_size: int = 2
    units: int = 3
    reset_after: bool = True
    use_bias: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    time_major: bool = False
    zero_output_for_mask: bool = False
    masked: bool = False
    cut: int = 1
    law: str = "split"
    backend: str = "auto"
    seed: int = 0


layer_calls = st.builds(
    LayerCall, batch=choose("batch", (1, 2, 3, 5)), time=choose("time", (1, 2, 3, 7)),
    input_size=choose("input_size", (1, 2, 5)),
    units=choose("units", (1, 3, 9)),
    reset_after=choose("reset_after", EITHER), use_bias=choose("use_bias", EITHER),
    activation=choose("activation", ("tanh", "softsign", "gelu", "relu")),
    recurrent_activation=choose("recurrent_activation", ("sigmoid", "hard_sigmoid")),
    time_major=choose("time_major", EITHER),
    zero_output_for_mask=choose("zero_output_for_mask", EITHER), masked=choose("masked", EITHER), cut=st.integers(0, 7),
    law=choose("law", ("split", "reset", "padding", "permute", "stateful", "stream", "backwards", "both", "map")),
    backend=choose("backend", ("auto", "eager", "reference")), seed=st.integers(0, 10**6),
)  # fmt: skip


class _Subject:
    """The layer of a call with its input (B,T,I) and mask (B,T) or None; batch first whatever the layer wants."""

    def __init__(self, c: LayerCall, **options):
        torch.manual_seed(c.seed)
        self.c = c
        self.layer = tritongru.GRU(
            c.units, c.activation, c.recurrent_activation, c.use_bias, bias_initializer="uniform",
            return_sequences=True, return_state=True, time_major=c.time_major, reset_after=c.reset_after,
            zero_output_for_mask=c.zero_output_for_mask, input_size=c.input_size, dtype="float64",
            backend="auto" if c.activation == "gelu" else c.backend, **options,
        )  # fmt: skip
        self.x = torch.randn(c.batch, c.time, c.input_size, dtype=F64)
        self.mask = torch.rand(c.batch, c.time) < 0.7 if c.masked else None
        self.start = torch.randn(c.batch, c.units, dtype=F64)
        self.cut = min(c.cut, c.time)

    def __call__(self, x: Tensor, mask: Tensor | None, state=None, resets=None) -> tuple[Tensor, Tensor]:
        def turned(value):
            return value.transpose(0, 1) if self.c.time_major and value is not None else value

        outputs, last = self.layer(turned(x), mask=turned(mask), initial_state=state, resets=turned(resets))
        return turned(outputs), last

    def part(self, begin: int, end: int) -> tuple[Tensor, Tensor | None]:
        return self.x[:, begin:end], None if self.mask is None else self.mask[:, begin:end]


def check_layer(c: LayerCall) -> int:
    """Assert the law that `c` names."""
    LAWS[c.law](c)
    return 1


def _same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **PRECISE)


def _split(c: LayerCall) -> None:
    """Splitting the time axis equals one call; outputs too, unless a masked step repeats one from before the cut."""
    s = _Subject(c)
    outputs, whole = s(s.x, s.mask, s.start)
    first, middle = s(*s.part(0, s.cut), s.start)
    second, last = s(*s.part(s.cut, c.time), middle)
    _same(last, whole)
    if not c.masked or c.zero_output_for_mask:
        _same(torch.cat((first, second), 1), outputs)


def _reset(c: LayerCall) -> None:
    """A reset equals a separate call from a zero state, and no gradient crosses it."""
    s = _Subject(c)
    s.cut = min(s.cut, c.time - 1)
    resets = (torch.arange(c.time) == s.cut).expand(c.batch, c.time)
    x = s.x.clone().requires_grad_()
    outputs, last = s(x, s.mask, s.start, resets)
    alone, end = s(*s.part(s.cut, c.time))
    _same(last, end)
    if not c.masked or c.zero_output_for_mask:
        _same(outputs[:, s.cut :], alone)
    (gradient,) = torch.autograd.grad(last.sum(), x)
    assert not gradient[:, : s.cut].any(), "a gradient crossed the reset"


def _padding(c: LayerCall) -> None:
    """Masked steps at the end, whatever they hold, leave the state and the other outputs as they are."""
    s = _Subject(c)
    outputs, state = s(s.x, s.mask, s.start)
    mask = torch.ones(c.batch, c.time, dtype=torch.bool) if s.mask is None else s.mask
    longer = torch.cat((s.x, torch.full((c.batch, c.cut, c.input_size), 1e6, dtype=F64)), 1)
    padded, same = s(longer, torch.cat((mask, torch.zeros(c.batch, c.cut, dtype=torch.bool)), 1), s.start)
    _same(same, state)
    _same(padded[:, : c.time], outputs)
    # Bit by bit what this run put out before; the other may have run elsewhere.
    before = padded[:, c.time - 1 : c.time]
    tail = torch.zeros_like(before) if c.zero_output_for_mask else before
    assert torch.equal(padded[:, c.time :], tail.expand(-1, c.cut, -1)), "a padded step's output"


def _permute(c: LayerCall) -> None:
    """Permuting the rows permutes the results."""
    s = _Subject(c)
    order = torch.randperm(c.batch)
    outputs, state = s(s.x, s.mask, s.start)
    moved, moved_state = s(s.x[order], None if s.mask is None else s.mask[order], s.start[order])
    _same(moved, outputs[order])
    _same(moved_state, state[order])


def _stateful(c: LayerCall) -> None:
    """A stateful layer's calls are one call over the parts together."""
    s, kept = _Subject(c), _Subject(c, stateful=True)
    kept.layer.load_state_dict(s.layer.state_dict())
    _, whole = s(s.x, s.mask)
    for begin, end in ((0, s.cut), (s.cut, c.time)):
        kept(*s.part(begin, end))
    _same(kept.layer.states[0], whole)
    kept.layer.reset_states()
    _same(kept(s.x, s.mask)[1], whole)


def _stream(c: LayerCall) -> None:
    """Step by step equals the sequence."""
    s = _Subject(c)
    outputs, _ = s(s.x, None)
    stream = tritongru.Stream(s.layer)
    for t in range(c.time):
        _same(stream.step(s.x[:, t]), outputs[:, t])


def _backwards(c: LayerCall) -> None:
    """go_backwards equals the reversed input."""
    s, back = _Subject(c), _Subject(c, go_backwards=True)
    back.layer.load_state_dict(s.layer.state_dict())
    turned = None if s.mask is None else s.mask.flip(1)
    outputs, state = s(s.x.flip(1), turned, s.start)
    actual, last = back(s.x, s.mask, s.start)
    _same(actual, outputs)
    _same(last, state)


def _both(c: LayerCall) -> None:
    """A Bidirectional is its two layers."""
    s = _Subject(c)
    both = tritongru.Bidirectional(s.layer, merge_mode=None, weights=s.layer.get_weights() * 2)
    turned = [value.transpose(0, 1) if c.time_major and value is not None else value for value in (s.x, s.mask)]
    found = both(turned[0], mask=turned[1])
    y, h = both.forward_layer(turned[0], mask=turned[1])
    y_rev, h_rev = both.backward_layer(turned[0], mask=turned[1])
    for value, right in zip(found, (y, y_rev.flip(0 if c.time_major else 1), h, h_rev), strict=True):
        _same(value, right)


def _map(c: LayerCall) -> None:
    """The gradient of each row by torch.func is that of the sum over the rows by autograd."""
    s = _Subject(c)

    def loss(x: Tensor, mask: Tensor | None) -> Tensor:
        outputs, last = s(x, mask)
        return outputs.square().sum() + last.pow(3).sum()

    leaf = s.x.clone().requires_grad_()
    (right,) = torch.autograd.grad(loss(leaf, s.mask), leaf)
    masks = None if s.mask is None else s.mask[:, None]
    found = torch.func.vmap(torch.func.grad(loss), (0, None if masks is None else 0))(s.x[:, None], masks)
    _same(found[:, 0], right)


LAWS = {
    "split": _split, "reset": _reset, "padding": _padding, "permute": _permute, "stateful": _stateful,
    "stream": _stream, "backwards": _backwards, "both": _both, "map": _map,
}  # fmt: skip
