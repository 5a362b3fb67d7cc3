"""`torch.nn.GRU` with the same constructor, outputs and checkpoints, and what it lacks: lengths, resets, backends.

Built on `nn.RNNBase`: torch.compile does not look into a subclass of `nn.GRU`, whatever it does (docs/torch.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from . import flops, tracing
from .backends.operators import WHOLE, is_watched
from .backends.running import run_plain
from .call.arguments import Arguments, LayerNorm
from .call.check import Signature, is_transformed, resolve_precision
from .call.errors import check_backend, check_heads, check_norm_name
from .call.problem import Inputs, Shape, Variant
from .call.recording import is_recorded
from .call.tensors import check_gradient_clip
from .call.zoneout import check_zoneout_rate, draw_zoneout
from .dispatch import Decision, decide
from .functional import explain_all, run_all
from .last_call import LastCall
from .named_weights import NamedWeights
from .replacing import Replacement
from .torch_inputs import pad, prepare, refuse_with_packed, sort_states, steps_of


class GRU(NamedWeights):
    """A multi-layer, optionally bidirectional GRU that takes the place of `torch.nn.GRU`.

    r = sigmoid(x W_ir' + b_ir + h W_hr' + b_hr), z likewise, n = tanh(x W_in' + b_in + r * (h W_hn' + b_hn)),
    h_t = (1 - z) * n + z * h.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as torch.nn.GRU.
        recurrent_dropout: probability in [0, 1] of dropping a unit of the state on its way into the gates; one mask per
            layer, direction and call, constant over time.
        zoneout: probability in [0, 1], for each unit and step, of keeping the old state in training; otherwise its
            mean is used.
        gradient_clip: bound of the gradient that each step passes to the state entering it; see `tritongru.gru`.
        layer_norm: None, "separate" or "joint" (`tritongru.LayerNorm`); the scales are parameters `layer_norm_scale_l0`
            and so on, one per layer and direction.
        heads: N; the recurrent weights are N blocks, parameters `weight_hh_heads_l0` (N,3U/N,U/N) and so on in place of
            `weight_hh_l0`; equal to N GRUs of U/N units side by side. They are drawn as a GRU of U/N units draws them.
        backend: "auto", "triton", "aten", "eager" or "reference"; a call may name another.

    Raises:
        TypeError, ValueError: as torch.nn.GRU, `proj_size` included.

    Note:
        `state_dict` has the keys and shapes of torch.nn.GRU's. `last_decision` holds the decision of the last call's
        first layer; it is not written while a compiler traces. `flatten_parameters` does nothing: no backend needs it.

    Source: torch.nn.GRU; recurrent_dropout after Gal and Ghahramani 2016 (arXiv 1512.05287).

    >>> gru = GRU(3, 4, num_layers=2, batch_first=True)
    >>> output, h_n = gru(torch.randn(2, 5, 3), lengths=torch.tensor([5, 2]))
    >>> output.shape, h_n.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 2, 4]))
    """

    last_decision: Decision | None = None
    zoneout: float = 0.0
    gradient_clip: float | None = None
    layer_norm: str | None = None
    heads: int = 1
    _last_call: LastCall | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *args,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        gradient_clip: float | None = None,
        layer_norm: str | None = None,
        heads: int = 1,
        backend: str = "auto",
        device=None,
        dtype=None,
        **kwargs,
    ):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        check_backend(backend)
        is_number = isinstance(recurrent_dropout, (int, float)) and not isinstance(recurrent_dropout, bool)
        if not is_number or not 0 <= recurrent_dropout <= 1:
            raise ValueError(f"`recurrent_dropout` must be a number in [0, 1], got {recurrent_dropout!r}")
        # Positional arguments past `bidirectional` mean in nn.GRU what they mean in RNNBase.
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        # Named, so that `torch.nn.utils.skip_init` finds them; nn.GRU's signature hides them.
        kwargs |= {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        super().__init__("GRU", *sizes, *args, **kwargs)
        if self.proj_size:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        self.recurrent_dropout = float(recurrent_dropout)
        self.zoneout, self.gradient_clip = check_zoneout_rate(zoneout), check_gradient_clip(gradient_clip)
        self.backend = backend
        flops.register_where_loaded()
        self.layer_norm, self.heads = check_norm_name(layer_norm), check_heads(heads, self.hidden_size, layer_norm)
        if self.heads > 1:
            self._make_heads()
        if self.layer_norm is not None:
            rows = (2,) if self.layer_norm == "separate" else ()
            for name in self._flat_weights_names:
                if name.startswith("weight_hh"):
                    like = getattr(self, name)
                    ones = nn.Parameter(like.new_ones(*rows, like.shape[0]))
                    self.register_parameter(name.replace("weight_hh", "layer_norm_scale"), ones)

    def reset_parameters(self) -> None:
        """Draw the weights as torch.nn.GRU does; scales of a norm become ones."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("layer_norm_scale"):
                nn.init.ones_(parameter)
            elif name.startswith("weight_hh_heads"):
                bound = parameter.shape[-1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound)

    def _make_heads(self) -> None:
        """Replace each (3U,U) of the recurrent weights by blocks (N,3U/N,U/N) under a name that says so."""
        width = self.hidden_size // self.heads
        for group in self._all_weights:
            for place, name in enumerate(group):
                if name.startswith("weight_hh"):
                    like, group[place] = getattr(self, name), name.replace("weight_hh", "weight_hh_heads")
                    delattr(self, name)
                    blocks = nn.Parameter(like.new_empty(self.heads, 3 * width, width))
                    self.register_parameter(group[place], blocks)
        self._flat_weights_names = [name for group in self._all_weights for name in group]
        self.reset_parameters()

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        # Not by keyword alone: torch.onnx.export(dynamo=False) passes every argument of a root module by position.
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run every layer over the sequence.

        Args:
            input: (T,B,I), (B,T,I) if `batch_first`, (T,I) for one sequence, or a PackedSequence.
            hx: (L*D,B,U) initial states, (L*D,U) for one sequence; None for zeros.
            lengths: (B,) integers in 0..T. Steps from there on are padding: their outputs are zero, the states are
                those of the last valid step, and a row of length 0 keeps `hx`.
            resets: (T,B), (B,T) if `batch_first`, (T,) for one sequence; nonzero where a new segment begins. Both
                directions treat the segments as separate sequences, and no gradient crosses. `hx` enters the first
                segment (the last one in the reverse direction) and not a segment that begins at step 0 by a reset.
            backend: takes the place of the constructor's.

        Returns:
            output (T,B,D*U), (B,T,D*U), (T,D*U) or a PackedSequence, as the input; h_n (L*D,B,U) or (L*D,U).

        Raises:
            TypeError, ValueError, RuntimeError: a wrong input or hx, as torch.nn.GRU; wrong lengths or resets.
            UnsupportedError: a named backend cannot run the call.
        """
        is_plain = lengths is None and resets is None and backend is None
        if is_plain and self._last_call is not None and not torch.compiler.is_compiling():
            again = self._last_call.again(self, input, hx)
            if again is not None:
                return again
        if (proxy := tracing.find_proxy(input, hx, lengths, resets)) is not None:
            options = dict(lengths=lengths, resets=resets, backend=backend)
            return tracing.record_call(self, proxy, input, hx, **options)  # type: ignore[return-value]
        if is_recorded() and self._is_plain_call(lengths, resets, backend):
            return tracing.TorchGRU.forward(self, input, hx)  # type: ignore[arg-type]
        if isinstance(input, PackedSequence):
            refuse_with_packed(lengths, resets)
            return self._forward_packed(input, hx, backend)
        decision = self._decide_for_all(input, hx, backend) if lengths is None and resets is None else None
        if decision is not None:
            if decision is not self.last_decision:
                self.last_decision = decision
            if decision.backend == "aten":
                return tracing.TorchGRU.forward(self, input, hx)  # type: ignore[arg-type]
        x, states, lengths, resets = prepare(self, input, hx, lengths, resets)
        output, h_n = self._run_layers(x, states, steps_of(lengths, x), resets, backend, decision)
        if input.dim() == 2:
            return output.squeeze(1), h_n.squeeze(1)
        if is_plain and decision is not None:
            self._last_call = self._last_call or LastCall()
            self._last_call.remember(self, input, hx, decision)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def explain(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        mask: None = None,
        backend: str | None = None,
    ) -> Decision:
        """Return which backend the first layer of such a call would run on, and why not the others.

        For two directions also whether they run at once.

        Args: as `forward`; `mask` is what `tritongru.explain` passes on, and must be None.
        Raises: as `forward`; TypeError for a mask.
        """
        if mask is not None:
            raise TypeError("compat.GRU takes no `mask`: pass `lengths`")
        if isinstance(input, PackedSequence):
            refuse_with_packed(lengths, resets)
            x, _, valid = pad(input)
            x, hx, _, _ = prepare(self, x, sort_states(hx, input), None, None, time_major=True)
        else:
            x, hx, lengths, resets = prepare(self, input, hx, lengths, resets)
            valid = steps_of(lengths, x)
        return explain_all(self._arguments_of_layer(0, x, hx, valid, resets), backend or self.backend)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.recurrent_dropout:
            text += f", recurrent_dropout={self.recurrent_dropout}"
        text += "".join(f", {name}={value}" for name in ("zoneout", "gradient_clip") if (value := getattr(self, name)))
        text += f", heads={self.heads}" if self.heads > 1 else ""
        text += f", layer_norm={self.layer_norm!r}" if self.layer_norm else ""
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"

    def _is_plain_call(self, lengths, resets, backend: str | None) -> bool:
        """Return whether torch.nn.GRU computes such a call."""
        drops = self.recurrent_dropout and self.training
        named = self.backend if backend is None else backend
        plain = lengths is None and resets is None and not drops and self._is_plain_cell()
        return plain and named in ("auto", "aten")

    def _is_plain_cell(self) -> bool:
        other = self.zoneout or self.gradient_clip is not None or self.layer_norm is not None or self.heads > 1
        return not other

    def _forward_packed(self, packed: PackedSequence, hx, backend) -> tuple[PackedSequence, Tensor]:
        x, lengths, valid = pad(packed)
        x, hx, _, _ = prepare(self, x, sort_states(hx, packed), None, None, time_major=True)
        output, h_n = self._run_layers(x, hx, valid, None, backend)
        data = pack_padded_sequence(output, lengths).data
        out = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        order = packed.unsorted_indices
        return out, h_n if order is None else h_n.index_select(1, order)

    def _decide_for_all(self, x: Tensor, hx: Tensor | None, backend: str | None) -> Decision | None:
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
        ):
            return None
        if x.dtype != self._flat_weights[0].dtype or (hx is not None and (hx.dtype, hx.device) != (x.dtype, x.device)):
            return None  # refused by name
        if (self.recurrent_dropout and self.training) or torch.is_autocast_enabled("cpu") or not self._is_plain_cell():
            return None
        time, batch = (x.shape[0], 1) if x.dim() == 2 else x.shape[1::-1] if self.batch_first else x.shape[:2]
        signature = Signature(
            "cpu", x.dtype, Variant(zero_output_for_mask=True, reset_gate_first=True), self.hidden_size,
            Shape(batch, time, x.shape[-1], self.hidden_size), has_bias=self.bias,
            precision=resolve_precision("auto"),
            wants_gradients=torch.is_grad_enabled()
            and (x.requires_grad or any(p.requires_grad for p in self._flat_weights)),
            members=2 if self.bidirectional else 1,
        )  # fmt: skip
        decision = decide(signature, self.backend if backend is None else backend)
        if decision.backend == "aten":
            return decision
        plain = decision.backend in WHOLE and not signature.wants_gradients
        return decision if plain and not is_watched((x, *self._flat_weights)) else None

    def _run_layers(
        self, x: Tensor, hx, valid, resets, backend: str | None, decided: Decision | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run all layers on time-major x: output (T,B,D*U), h_n (L*D,B,U).

        Args:
            decided: the decision for every layer, where it was made beforehand (`_decide_for_all`).
        """
        backend = self.backend if backend is None else backend
        states, decision = [], None
        if resets is not None and valid is not None:
            resets = resets & valid  # a reset in the padding belongs to no segment
        for layer in range(self.num_layers):
            arguments = self._arguments_of_layer(layer, x, hx, valid, resets)
            if decided is None:
                outputs, last, (made, *_) = zip(*run_all(arguments, backend), strict=True)
                decision = made if decision is None else decision
            else:
                outputs, last = zip(*_run_plainly(arguments, decided), strict=True)
            states += last
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        if decided is None and not torch.compiler.is_compiling():
            self.last_decision = decision
        return x, torch.stack(states)

    def _arguments_of_layer(self, layer: int, x: Tensor, hx, valid, resets) -> list[Arguments]:
        """Return the arguments of `tritongru.gru` for each direction of a layer."""
        directions = 2 if self.bidirectional else 1
        states = [None] * directions if hx is None else hx[layer * directions : (layer + 1) * directions]
        return [self._arguments(layer, d, x, h0, valid, resets) for d, h0 in enumerate(states)]

    def _arguments(self, layer: int, direction: int, x: Tensor, h0, valid, resets) -> Arguments:
        """Return the arguments of `tritongru.gru` for one layer and direction."""
        suffix = f"l{layer}_reverse" if direction else f"l{layer}"
        bias = (getattr(self, f"bias_ih_{suffix}"), getattr(self, f"bias_hh_{suffix}")) if self.bias else None
        drop = None
        if self.recurrent_dropout and self.training:
            drop = F.dropout(x.new_ones(x.shape[1], self.hidden_size), self.recurrent_dropout)
        norm = LayerNorm(self.layer_norm, getattr(self, f"layer_norm_scale_{suffix}")) if self.layer_norm else None
        heads = "heads_" if self.heads > 1 else ""
        if direction and resets is not None:
            # Walking back, a segment begins at the step before the one that opens the next segment.
            resets = torch.cat((resets[1:], torch.zeros_like(resets[:1])))
        return Arguments(
            x=x, kernel=getattr(self, f"weight_ih_{suffix}"),
            recurrent_kernel=getattr(self, f"weight_hh_{heads}{suffix}"),
            bias=bias, initial_state=h0, mask=valid, resets=resets, recurrent_dropout=drop, zero_output_for_mask=True,
            go_backwards=bool(direction), time_major=True, layout="torch",
            zoneout=draw_zoneout(x, self.hidden_size, self.zoneout, self.training), gradient_clip=self.gradient_clip,
            layer_norm=norm,
        )  # fmt: skip


def _run_plainly(calls: list[Arguments], decision: Decision) -> list[tuple[Tensor, Tensor]]:
    """Run the directions of a layer that neither need checks nor are masked, reset, dropped or recorded."""
    inputs, variants = [], []
    for a in calls:
        h0 = a.x.new_zeros(a.batch, a.recurrent_kernel.shape[1]) if a.initial_state is None else a.initial_state
        bias_x, bias_h = a.bias or (None, None)
        inputs.append(Inputs(a.x, a.kernel.t(), bias_x, a.recurrent_kernel.t(), bias_h, h0))  # type: ignore[union-attr, arg-type]
        variants.append(Variant(zero_output_for_mask=True, reverse=a.go_backwards, reset_gate_first=True))
    return run_plain(inputs, variants, resolve_precision("auto"), decision.backend, at_once=decision.members > 1)


def patch() -> Replacement:
    """Put `GRU` in the place of `torch.nn.GRU` in torch itself, for libraries that name it.

    In force from the call on, until the end of a `with` block or a call of `undo()`. Libraries that take the name when
    they are imported must be imported while it is in force.

    Returns:
        what undoes it.

    >>> with patch():
    ...     layer = torch.nn.GRU(3, 4)
    >>> type(layer) is GRU, torch.nn.GRU is GRU
    (True, False)
    """
    return Replacement(GRU)
