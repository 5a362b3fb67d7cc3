"""`tritongru.Stream`: a GRU layer one step at a time."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .keras.arguments import for_autograd
from .keras.dropout import draw_masks
from .keras.layer import GRU
from .keras.state import find_loss, has_shape_alone, is_capturing
from .keras.step import LastStep, run_step

# What torch's tools leave on a module to make a weight before each of its calls: a step is such a call.
MAKERS_OF_WEIGHTS = (BasePruningMethod, WeightNorm, SpectralNorm)


class Stream:
    """Runs a layer step by step and keeps the state between the steps; equal to one call over the sequence.

    Args:
        layer: a `tritongru.GRU`. Its weights are used as they are, so training it goes on to take effect.

    Attributes:
        state: (B,U) after the first step, else None.

    Raises:
        TypeError: not a GRU layer. ValueError: a layer with `go_backwards=True`, which begins at the end.

    Note:
        A copy (`copy.deepcopy`, pickle) goes on from the state by itself, without the graph of the steps so far.

        A step can be captured in a CUDA graph, without gradients and after one step that was not. From then on the
        state keeps its place in memory: each replay goes on from the state of the one before, and `reset` sets it to
        zeros where it is.

    >>> layer = GRU(4, input_size=3, return_sequences=True)
    >>> x, stream = torch.randn(2, 5, 3), Stream(layer)
    >>> steps = torch.stack([stream.step(x[:, t]) for t in range(5)], dim=1)
    >>> torch.allclose(steps, layer(x), atol=1e-6)
    True
    """

    def __init__(self, layer: GRU):
        if not isinstance(layer, GRU):
            raise TypeError(f"`layer` must be a tritongru.GRU, got {type(layer).__module__}.{type(layer).__name__}")
        if layer.go_backwards:
            raise ValueError("`layer` has go_backwards=True: it begins with the last step, which a stream has not seen")
        self.layer = layer
        self.state: Tensor | None = None
        self._masks: tuple | None = None
        self._captured = False
        self._last_step = LastStep()

    def step(self, x: Tensor) -> Tensor:
        """Process x (B,I) and return the output (B,U): the values of the new state, in memory of their own.

        Raises:
            ValueError: `x` is not (B,I), or its batch differs from the state's.
            RuntimeError: a CUDA graph is captured before the first step, or with gradients; a tracer, a torch.func
                transform or a checkpoint, which would lose the state.
        """
        layer = self.layer
        drops = layer.training and (layer.dropout or layer.recurrent_dropout)
        if self.state is not None and not drops and not torch.is_grad_enabled() and not is_capturing(x):
            again = self._last_step.again(layer, x, self.state, layer.backend)
            if again is not None:
                output, self.state = again
                return output
        if not isinstance(x, Tensor) or x.dim() != 2:
            raise ValueError(f"`x` must be a tensor (B,I), got {getattr(x, 'shape', type(x).__name__)}")
        if (loss := find_loss()) is not None:
            raise RuntimeError(
                f"a Stream has its state in itself, and {loss} cannot carry it from step to step: pass the state in "
                "and out of a tritongru.GRUCell: `output, state = cell(x, state)`"
            )
        if capturing := is_capturing(x):
            self._check_capture()
        if not layer.built:
            layer.build(x.shape[1])
        if x.shape[1] != layer.input_size:
            raise ValueError(f"`x` must have {layer.input_size} features, got {x.shape[1]}")
        if self.state is not None and self.state.shape[0] != x.shape[0]:
            raise ValueError(f"`x` must have batch {self.state.shape[0]}, that of the state, got {x.shape[0]}")
        x = layer._to_input(x)
        state = x.new_zeros(x.shape[0], layer.units) if self.state is None else for_autograd(self.state.to(x.dtype))
        masks = self._dropout_masks(x, state) if layer.training else None
        input_masks, state_masks = masks or (None, None)
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, MAKERS_OF_WEIGHTS):
                hook(layer, None)
        weights = layer._compute_weights()
        new, decision = run_step(layer, x, state, weights, input_masks, state_masks, layer.backend)
        if has_shape_alone(new):
            return new
        if not drops:
            self._last_step.remember(layer, x, state, layer.backend, decision)
        # Kept now that nothing of the step can fail any more.
        self._masks = masks or self._masks
        if capturing:
            assert self.state is not None
            self.state.copy_(new)
            self._captured = True
            return new
        self.state = new
        # Whoever writes into the output must not change the next step.
        return new.clone()

    def reset(self, rows=None) -> None:
        """Set the state to zeros: of all rows, or of those that `rows` (indices, or bool (B,)) selects.

        Raises:
            TypeError, ValueError, IndexError: `rows` of another kind, another shape, or beyond the batch. The state is
                then as it was.
        """
        if rows is None:
            self._masks = None
            if self._captured:
                self.state.zero_()
            else:
                self.state = None
        elif self.state is not None:
            selected = _check_rows(rows, self.state.shape[0]).to(self.state.device)
            state = self.state if self._captured else self.state.clone()
            state[selected] = 0
            self.state = state

    def detach(self) -> None:
        """Cut the state from the graph of the steps so far."""
        if self.state is not None:
            self.state = self.state.detach()

    def __getstate__(self) -> dict:
        # A copy goes on from the state, outside of the graph of the steps so far and of a CUDA graph.
        state = None if self.state is None else self.state.detach().clone()
        return {**self.__dict__, "state": state, "_captured": False}

    def _check_capture(self) -> None:
        if self.state is None:
            raise RuntimeError("`step` was captured before the first step: run one, so that the state has its place")
        if torch.is_grad_enabled():
            raise RuntimeError("`step` was captured with gradients: capture it under torch.no_grad()")

    def _dropout_masks(self, x: Tensor, state: Tensor) -> tuple:
        layer = self.layer
        if self._masks is not None:
            drawn = next((one for one in self._masks if one is not None), x)
            kept = drawn[0] if isinstance(drawn, list) else drawn
            if (kept.dtype, kept.device) == (x.dtype, x.device):
                return self._masks
            # The layer has changed its dtype or its device since.
            return tuple(map(functools.partial(_moved_to, x), self._masks))
        count = 3 if layer.implementation == 1 else 1
        # Kept for later steps, which may be recorded by autograd even where this one is not.
        with torch.inference_mode(False):
            return (
                draw_masks(x, layer.dropout, "dropout", True, count) if layer.dropout else None,
                draw_masks(state, layer.recurrent_dropout, "recurrent_dropout", True, count)
                if layer.recurrent_dropout
                else None,
            )


def _moved_to(x: Tensor, masks):
    """Return a mask, a list of some, or None, with the dtype and the device of `x`."""
    if isinstance(masks, list):
        return [mask.to(x) for mask in masks]
    return None if masks is None else masks.to(x)


def _check_rows(rows, batch: int) -> Tensor:
    """Return which rows of `batch` are meant: indices, or bool (B,)."""
    try:
        rows = rows if isinstance(rows, Tensor) else torch.as_tensor(rows, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`rows` must be indices or bool (B,), got {rows!r}") from None
    if rows.dtype == torch.bool:
        if tuple(rows.shape) != (batch,):
            raise ValueError(f"`rows` of bool must have shape (B,) = {(batch,)}, got {tuple(rows.shape)}")
        return rows
    if rows.numel() == 0:
        return rows.long()
    if rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"`rows` must be indices or bool (B,), got {rows.dtype}")
    # Indices on an accelerator are not read back: that would stop the device.
    if rows.device.type == "cpu" and not -batch <= int(rows.min()) <= int(rows.max()) < batch:
        raise IndexError(f"`rows` must lie in {-batch}..{batch - 1}, got {rows.tolist()}")
    return rows
