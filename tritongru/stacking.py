"""The layers of a `compat.GRU`: which backend runs them, one after another or overlapping in chunks of steps."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import overlap
from .backends.operators import WHOLE, is_watched
from .backends.running import run_plain
from .backends.triton.reasons import reasons_against_several
from .call.arguments import Arguments, LayerNorm
from .call.check import Signature, check, is_transformed, resolve_precision
from .call.problem import Inputs, Shape, Variant
from .call.recording import is_traced
from .call.zoneout import draw_zoneout
from .dispatch import Decision, decide
from .functional import explain_all, run_all
from .named_weights import ASSIGNED, NamedWeights


def is_plain_cell(gru: NamedWeights) -> bool:
    """Return whether a step is that of torch.nn.GRU, but for dropout."""
    return not (gru.zoneout or gru.gradient_clip is not None or gru.layer_norm is not None or gru.heads > 1)


def is_one_plain_layer(gru: NamedWeights) -> bool:
    """Return whether a call is one scan of torch.nn.GRU's, with the layer's own parameters."""
    one = gru.num_layers == 1 and not gru.bidirectional and not gru.recurrent_dropout
    return one and is_plain_cell(gru) and ASSIGNED not in gru.__dict__


def decide_for_all(gru: NamedWeights, x: Tensor, hx: Tensor | None, backend: str | None) -> Decision | None:
    """Return the decision for a call whose layers need no further checks each; None for any other.

    That is: torch's own GRU is to run all at once, or another backend of a CPU without gradients.

    On a CPU alone: on a GPU that GRU has conditions of its own, see `backends/aten.py`.
    """
    if (
        torch.compiler.is_compiling()
        or is_transformed()
        or not isinstance(x, Tensor)
        or x.device.type != "cpu"
        or x.dim() not in (2, 3)
        or x.is_nested
    ):
        return None
    if not (hx is None or isinstance(hx, Tensor)):
        return None  # refused by name
    weights = gru._flat_weights
    kinds = {(t.dtype, t.device) for t in (x, hx, *weights) if t is not None}
    if len(kinds) > 1 or [t.shape for t in weights] != expected_shapes(gru):
        return None  # the same
    if (gru.recurrent_dropout and gru.training) or torch.is_autocast_enabled("cpu") or not is_plain_cell(gru):
        return None
    time, batch = (x.shape[0], 1) if x.dim() == 2 else x.shape[1::-1] if gru.batch_first else x.shape[:2]
    signature = Signature(
        "cpu", x.dtype, Variant(zero_output_for_mask=True, reset_gate_first=True), gru.hidden_size,
        Shape(batch, time, x.shape[-1], gru.hidden_size), has_bias=gru.bias,
        precision=resolve_precision("auto"),
        wants_gradients=torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (x, hx, *weights)),
        members=2 if gru.bidirectional else 1,
    )  # fmt: skip
    decision = decide(signature, gru.backend if backend is None else backend)
    if decision.backend == "aten":
        return decision
    plain = decision.backend in WHOLE and not signature.wants_gradients
    return decision if plain and not is_watched((x, hx, *weights)) else None


def expected_shapes(gru: NamedWeights) -> list[tuple[int, ...]]:
    """Return the shapes of `_flat_weights`."""
    U, directions = gru.hidden_size, 2 if gru.bidirectional else 1
    shapes = []
    for layer in range(gru.num_layers):
        inputs = gru.input_size if layer == 0 else directions * U
        shapes += ([(3 * U, inputs), (3 * U, U)] + [(3 * U,)] * (2 if gru.bias else 0)) * directions
    return shapes


def run_layers(
    gru: NamedWeights, x: Tensor, hx, valid, resets, backend: str, decided: Decision | None = None
) -> tuple[Tensor, Tensor, Decision | None]:
    """Run all layers on time-major x.

    Args:
        x: (T,B,I). hx: (L*D,B,U) or None. valid, resets: (T,B) bool or None.
        decided: the decision for every layer, where it was made beforehand.

    Returns:
        output (T,B,D*U); h_n (L*D,B,U); the decision for the first layer.
    """
    if resets is not None and valid is not None:
        resets = resets & valid  # a reset in the padding belongs to no segment
    first, note = arguments_of_layer(gru, 0, x, hx, valid, resets), ""
    if decided is None and gru.num_layers > 1 and x.is_cuda and not is_traced():
        reasons = reasons_against_overlap(gru, first, backend)
        if not reasons:
            lines = overlap.Streams(x.device, gru.num_layers)
            return run_overlapping(gru, first, hx, valid, resets, backend, lines)
        note = say_serial(gru.num_layers, reasons)
    states, decision = [], decided
    for layer in range(gru.num_layers):
        arguments = arguments_of_layer(gru, layer, x, hx, valid, resets) if layer else first
        if decided is None:
            outputs, last, (made, *_) = zip(*run_all(arguments, backend), strict=True)
            decision = decision or made
        else:
            outputs, last = zip(*_run_plainly(arguments, decided), strict=True)
        states += last
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if gru.dropout and gru.training and layer + 1 < gru.num_layers:
            x = F.dropout(x, gru.dropout)
    if note and decision is not None:
        decision = replace(decision, layers=note)
    return x, torch.stack(states), decision


def explain_layers(gru: NamedWeights, x: Tensor, hx, valid, resets, backend: str) -> Decision:
    """Return the decision for the first layer, and whether the layers overlap; arguments as `run_layers`."""
    arguments = arguments_of_layer(gru, 0, x, hx, valid, resets)
    decision = explain_all(arguments, backend)
    if gru.num_layers == 1 or not x.is_cuda:
        return decision
    reasons = reasons_against_overlap(gru, arguments, backend)
    said = say_serial(gru.num_layers, reasons) if reasons else say_overlap(x.shape[0], gru.num_layers)
    return replace(decision, layers=said)


def say_overlap(steps: int, layers: int) -> str:
    """Return the line of a decision about layers that overlap."""
    chunk = overlap.choose_chunk(steps, layers)
    return f"{layers} layers overlap in chunks of {chunk} steps: at best {overlap.gain(steps, layers, chunk):.2f} times"


def say_serial(layers: int, reasons: list[str]) -> str:
    """Return the line of a decision about layers that do not overlap."""
    return f"{layers} layers one after another: {'; '.join(reasons)}"


def reasons_against_overlap(gru: NamedWeights, first: list[Arguments], backend: str) -> list[str]:
    """Return why the layers of a call on a GPU run one after another; `first`: the arguments of the first layer."""
    if len(first) > 1:
        return ["bidirectional=True: a layer needs the whole of the one below"]
    if gru.dropout and gru.training:
        return [f"dropout={gru.dropout:g} between the layers is drawn for all steps at once"]
    if gru.heads > 1:
        return [f"heads={gru.heads}"]
    if is_transformed():
        return ["inside a transform of torch.func"]
    if is_watched((first[0].x, first[0].initial_state, *gru._flat_weights)):
        return ["a tracer, a mode or a tensor of another class looks at the operators"]
    # Before the call is checked, which costs as much as several steps.
    if reasons := overlap.reasons_against(first[0].time, gru.num_layers):
        return reasons
    signature = check(first[0]).signature
    if (decision := decide(signature, backend)).backend != "triton":
        return [f"backend {decision.backend}"]
    return reasons_against_several(signature, gru.num_layers)


def run_overlapping(
    gru: NamedWeights, first: list[Arguments], hx, valid, resets, backend: str, lines: overlap.Lines,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Decision | None]:  # fmt: skip
    """Run all layers of one direction in chunks of steps, in the order of `overlap.run_in_chunks`.

    Args:
        first: the arguments of the first layer. chunk: steps, None for as many as are chosen. Others and the results as
            `run_layers`.
    """
    x = first[0].x
    T, B, _ = x.shape
    size = chunk or overlap.choose_chunk(T, gru.num_layers)
    # What is drawn is drawn for all steps at once, in the order of the layers, as without chunks.
    above = (arguments_of_layer(gru, layer, x, hx, valid, resets) for layer in range(1, gru.num_layers))
    layers = _behind_gate([calls[0] for calls in (first, *above)])
    decisions: list[Decision] = []

    def step(layer: int, number: int, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        a, now = layers[layer], slice(number * size, (number + 1) * size)
        a = a._replace(x=rows, initial_state=state, **{
            name: value[now] for name in ("mask", "resets", "zoneout") if (value := getattr(a, name)) is not None
        })  # fmt: skip
        for value in (each for given in a for each in (given if isinstance(given, tuple) else (given,))):
            if isinstance(value, Tensor) and value is not rows:
                lines.lend(value, layer)
        ((outputs, last, decision),) = run_all([a], backend)
        decisions.append(decision)
        return outputs, last

    zeros = x.new_zeros(B, gru.hidden_size)
    states = [zeros if a.initial_state is None else a.initial_state for a in layers]
    rows, states = overlap.run_in_chunks(step, x.split(size), states, lines)
    decision = replace(decisions[0], layers=say_overlap(T, gru.num_layers)) if chunk is None else decisions[0]
    return torch.cat(rows), torch.stack(states), decision


def _behind_gate(calls: list[Arguments]) -> list[Arguments]:
    """Return the calls with the weights of all behind one `overlap.gate`."""
    passed = iter(overlap.gate([w for a in calls for w in (a.kernel, a.recurrent_kernel, *(a.bias or ()))]))  # type: ignore[misc]
    return [
        a._replace(kernel=next(passed), recurrent_kernel=next(passed), bias=a.bias and (next(passed), next(passed)))
        for a in calls
    ]


def arguments_of_layer(gru: NamedWeights, layer: int, x: Tensor, hx, valid, resets) -> list[Arguments]:
    """Return the arguments of `tritongru.gru` for each direction of a layer."""
    directions = 2 if gru.bidirectional else 1
    states = [None] * directions if hx is None else hx[layer * directions : (layer + 1) * directions]
    return [_arguments(gru, layer, d, x, h0, valid, resets) for d, h0 in enumerate(states)]


def _arguments(gru: NamedWeights, layer: int, direction: int, x: Tensor, h0, valid, resets) -> Arguments:
    """Return the arguments of `tritongru.gru` for one layer and direction."""
    suffix = f"l{layer}_reverse" if direction else f"l{layer}"
    bias = (gru._weight(f"bias_ih_{suffix}"), gru._weight(f"bias_hh_{suffix}")) if gru.bias else None
    drop = None
    if gru.recurrent_dropout and gru.training:
        drop = F.dropout(x.new_ones(x.shape[1], gru.hidden_size), gru.recurrent_dropout)
    norm = LayerNorm(gru.layer_norm, getattr(gru, f"layer_norm_scale_{suffix}")) if gru.layer_norm else None
    if direction and resets is not None:
        # Walking back, a segment begins at the step before the one that opens the next segment.
        resets = torch.cat((resets[1:], torch.zeros_like(resets[:1])))
    recurrent = getattr(gru, f"weight_hh_heads_{suffix}") if gru.heads > 1 else gru._weight(f"weight_hh_{suffix}")
    return Arguments(
        x=x, kernel=gru._weight(f"weight_ih_{suffix}"), recurrent_kernel=recurrent,
        bias=bias, initial_state=h0, mask=valid, resets=resets, recurrent_dropout=drop, zero_output_for_mask=True,
        go_backwards=bool(direction), time_major=True, layout="torch",
        zoneout=draw_zoneout(x, gru.hidden_size, gru.zoneout, gru.training), gradient_clip=gru.gradient_clip,
        layer_norm=norm,
    )  # fmt: skip


def _run_plainly(calls: list[Arguments], decision: Decision) -> list[tuple[Tensor, Tensor]]:
    """Run the directions of a layer that neither need checks nor are masked, reset, dropped or recorded."""
    inputs, variants = [], []
    for a in calls:
        h0 = a.x.new_zeros(a.batch, a.recurrent_kernel.shape[1]) if a.initial_state is None else a.initial_state
        bias_x, bias_h = a.bias or (None, None)
        inputs.append(Inputs(a.x, a.kernel.t(), bias_x, a.recurrent_kernel.t(), bias_h, h0))
        variants.append(Variant(zero_output_for_mask=True, reverse=a.go_backwards, reset_gate_first=True))
    return run_plain(inputs, variants, resolve_precision("auto"), decision.backend, at_once=decision.members > 1)
