"""Layers for the benchmark of small calls, where what stands before the computation is most of the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ... import compat
from ...keras.layer import GRU
from ...layouts import torch_to_keras
from ...stream import Stream
from .contenders import INFERENCE, Contender, UnavailableError
from .work import Work


def compat_gru(work: Work) -> Contender:
    """Return `tritongru.compat.GRU`."""
    _require_plain(work)
    w = work.workload
    layer = compat.GRU(w.input_size, w.units, device=work.device, dtype=work.dtype)
    _copy(layer, work.weights)
    return Contender(lambda number, x: layer(x)[0], list(layer.parameters()), note_of=_note_of(layer, work))


def keras_gru(work: Work) -> Contender:
    """Return `tritongru.GRU`, time-major, with all outputs."""
    layer = _make_layer(work, "auto")
    return Contender(lambda number, x: layer(x), list(layer.parameters()), note_of=_note_of(layer, work))


def stream(work: Work, backend: str = "auto") -> Contender:
    """Return `tritongru.Stream.step`, which goes on from the state of the call before."""
    _require_one_step(work)
    streamed = Stream(_make_layer(work, backend))
    xs = [given.x[0] for given in work.inputs]
    return Contender(lambda number, _: streamed.step(xs[number]), [], directions=(INFERENCE,))


def torch_cell(work: Work) -> Contender:
    """Return `torch.nn.GRUCell`, which is given its last output as the state."""
    _require_one_step(work)
    w = work.workload
    cell = nn.GRUCell(w.input_size, w.units, device=work.device, dtype=work.dtype)
    _copy(cell, work.weights)
    xs, state = [given.x[0] for given in work.inputs], [cell.weight_hh.new_zeros(w.batch, w.units)]

    def forward(number: int, _: Tensor) -> Tensor:
        state[0] = cell(xs[number], state[0])
        return state[0]

    return Contender(forward, [], directions=(INFERENCE,))


def _make_layer(work: Work, backend: str) -> GRU:
    _require_plain(work)
    w = work.workload
    layer = GRU(w.units, input_size=w.input_size, return_sequences=True, time_major=True, backend=backend,
                device=work.device, dtype=work.dtype)  # fmt: skip
    _copy(layer, torch_to_keras(*work.weights))
    return layer


def _copy(layer: nn.Module, values) -> None:
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(value)


def _note_of(layer: GRU | compat.GRU, work: Work) -> Callable[[str], str]:
    def note(direction: str) -> str:
        with torch.set_grad_enabled(direction != INFERENCE):
            return f"is {layer.explain(work.inputs[0].x).backend} here"

    return note


def _require_plain(work: Work) -> None:
    if work.workload.features:
        raise UnavailableError(f"layers take part in plain calls, not in those with {work.workload.features}")


def _require_one_step(work: Work) -> None:
    _require_plain(work)
    if work.workload.time != 1:
        raise UnavailableError(f"a step is one step, not {work.workload.time}")


LAYERS = {
    "compat.GRU": compat_gru,
    "tritongru.GRU": keras_gru,
    "Stream.step": stream,
    "Stream.step-eager": partial(stream, backend="eager"),
    "nn.GRUCell": torch_cell,
}
