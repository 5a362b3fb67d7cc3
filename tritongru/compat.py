"""`torch.nn.GRU` with the same constructor, outputs and checkpoints, and what it lacks: lengths, resets, backends.

Built on `nn.RNNBase`: torch.compile does not look into a subclass of `nn.GRU`, whatever it does (docs/torch.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from . import repeats, tracing
from .call.arguments import Arguments
from .call.check import check
from .call.errors import check_backend, check_heads, check_norm_name
from .call.recording import is_recorded
from .call.tensors import check_gradient_clip
from .call.zoneout import check_zoneout_rate
from .dispatch import Decision
from .last_call import LastCall
from .named_weights import NamedWeights
from .replacing import Replacement
from .stacking import decide_for_all, explain_layers, is_one_plain_layer, is_plain_cell, run_layers
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
        backend: "auto", "triton", "aten", "numba", "eager" or "reference"; a call may name another.

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
        if is_plain and not torch.compiler.is_compiling() and self._last_call is not None:
            again = self._last_call.again(self, input, hx)
            if again is not None:
                return again
        plain = self._plain_arguments(input, hx) if is_plain and not torch.compiler.is_compiling() else None
        kind = None if plain is None else repeats.kind_of(plain, self.backend)
        if plain is not None and (known := repeats.find(kind)) is not None:
            if self.last_decision is not known.decision:
                self.last_decision = known.decision
            if known.decision.backend == "aten":
                return tracing.TorchGRU.forward(self, input, hx)  # type: ignore[arg-type]
            if (repeat := known.repeat) is not None:
                if repeat.is_short:
                    self._last_call = self._last_call or LastCall()
                    self._last_call.remember(self, input, hx, repeat)
                output, state, _ = repeat.run(plain)
                return output, state.unsqueeze(0)
        if (proxy := tracing.find_proxy(input, hx, lengths, resets)) is not None:
            options = dict(lengths=lengths, resets=resets, backend=backend)
            return tracing.record_call(self, proxy, input, hx, **options)  # type: ignore[return-value]
        if is_recorded() and self._is_plain_call(lengths, resets, backend):
            return tracing.TorchGRU.forward(self, input, hx)  # type: ignore[arg-type]
        if isinstance(input, PackedSequence):
            refuse_with_packed(lengths, resets)
            return self._forward_packed(input, hx, backend)
        decision = decide_for_all(self, input, hx, backend) if lengths is None and resets is None else None
        if decision is not None:
            if decision is not self.last_decision:
                self.last_decision = decision
            if decision.backend == "aten":
                self._remember(kind, plain, decision)
                return tracing.TorchGRU.forward(self, input, hx)  # type: ignore[arg-type]
        x, states, lengths, resets = prepare(self, input, hx, lengths, resets)
        output, h_n = self._run(x, states, steps_of(lengths, x), resets, backend, decision)
        if input.dim() == 2:
            return output.squeeze(1), h_n.squeeze(1)
        self._remember(kind, plain, self.last_decision)
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

        For two directions also whether they run at once, for several layers on a GPU whether they overlap.

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
        return explain_layers(self, x, hx, valid, resets, backend or self.backend)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.recurrent_dropout:
            text += f", recurrent_dropout={self.recurrent_dropout}"
        text += f", zoneout={self.zoneout}" if self.zoneout else ""
        text += "" if self.gradient_clip is None else f", gradient_clip={self.gradient_clip}"
        text += f", heads={self.heads}" if self.heads > 1 else ""
        text += f", layer_norm={self.layer_norm!r}" if self.layer_norm else ""
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"

    def _run(self, x: Tensor, hx, valid, resets, backend: str | None, decided: Decision | None = None):
        """Run all layers on time-major x, see `stacking.run_layers`; output (T,B,D*U), h_n (L*D,B,U)."""
        named = self.backend if backend is None else backend
        output, h_n, decision = run_layers(self, x, hx, valid, resets, named, decided)
        if decided is None and not torch.compiler.is_compiling():
            self.last_decision = decision
        return output, h_n

    def _plain_arguments(self, input, hx) -> Arguments | None:
        """Return the arguments of `tritongru.gru` for a call of one plain layer, None for any other."""
        if not is_one_plain_layer(self):
            return None
        if not isinstance(input, Tensor) or input.dim() != 3 or not (hx is None or isinstance(hx, Tensor)):
            return None
        if hx is not None and (hx.dim() != 3 or hx.shape[0] != 1):
            return None
        # A weight behind a parametrization is not among them.
        weights = [self._parameters.get(name) for name in self._flat_weights_names]
        if any(weight is None for weight in weights):
            return None
        bias = tuple(weights[2:]) if self.bias else None
        return Arguments(
            input, weights[0], weights[1], bias, hx if hx is None else hx[0], zero_output_for_mask=True,
            time_major=not self.batch_first, layout="torch",
        )  # type: ignore[arg-type]  # fmt: skip

    def _remember(self, kind: tuple | None, plain: Arguments | None, decision: Decision | None) -> None:
        if kind is not None and plain is not None and decision is not None and repeats.find(kind) is None:
            repeats.remember(kind, check(plain), decision)

    def _is_plain_call(self, lengths, resets, backend: str | None) -> bool:
        """Return whether torch.nn.GRU computes such a call."""
        drops = self.recurrent_dropout and self.training
        named = self.backend if backend is None else backend
        plain = lengths is None and resets is None and not drops and is_plain_cell(self)
        return plain and named in ("auto", "aten")

    def _forward_packed(self, packed: PackedSequence, hx, backend) -> tuple[PackedSequence, Tensor]:
        x, lengths, valid = pad(packed)
        x, hx, _, _ = prepare(self, x, sort_states(hx, packed), None, None, time_major=True)
        output, h_n = self._run(x, hx, valid, None, backend)
        data = pack_padded_sequence(output, lengths).data
        out = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        order = packed.unsorted_indices
        return out, h_n if order is None else h_n.index_select(1, order)


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
