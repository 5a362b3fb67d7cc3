"""The state a stateful layer keeps from one call to the next, in the manner of Keras.

It is no buffer: a buffer is broadcast, averaged and traced by whoever wraps the module, and a state belongs to the one
stream of data that its own process feeds.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from ..call.recording import is_exporting, is_recorded
from .arguments import for_autograd, to_tensor
from .base import RecurrentWeights


class CarriedState:
    """The batch size and the state of one stateful layer.

    Attributes:
        batch: B, None before it is known.
        value: (B,U) or None for zeros. Replaced and never written to: a graph of an earlier call may have saved it, and
            another thread may be reading it.
    """

    def __init__(self) -> None:
        self.batch: int | None = None
        self.value: Tensor | None = None

    def read(self, weight: Tensor) -> Tensor:
        """Return the state on the device and in the dtype of `weight` (U,3U)."""
        if self.value is None or weight.is_meta:
            value = torch.zeros(self.batch or 0, weight.shape[0], dtype=weight.dtype, device=weight.device)
        else:
            value = self.value.to(weight.device, weight.dtype)
        if not weight.is_meta:
            self.value = value
        return value

    def keep(self, state: Tensor, weight: Tensor) -> None:
        """Keep what a call ended with, (B,U); nothing where shapes alone were worked out."""
        if has_shape_alone(state):
            return
        self.batch, self.value = state.shape[0], state.detach().to(weight.dtype, copy=True)

    def follow(self, weight: Tensor, convert: Callable[[Tensor], Tensor]) -> None:
        """Go along with `weight`, which `convert` has moved, cast or emptied."""
        if self.value is None:
            return
        if weight.is_meta or _drops_values(convert):
            self.value = None
        else:
            self.read(weight)


def has_shape_alone(value: Tensor) -> bool:
    """Return whether `value` has no values: on the meta device, or under `FakeTensorMode`."""
    return not torch.compiler.is_compiling() and (value.is_meta or is_fake(value))


def _drops_values(convert: Callable[[Tensor], Tensor]) -> bool:
    # `to_empty` tells no module that it is at work. What makes a tensor of one without values carries none over; a copy
    # of one is refused by torch.
    try:
        return not convert(torch.empty(1, device="meta")).is_meta
    except (NotImplementedError, RuntimeError):
        return False


def find_loss() -> str | None:
    """Return what is at work that would lose a carried state, or leave a tensor of its own in it; None for nothing."""
    if _is_transformed():
        return "a torch.func transform"
    if _is_traced():
        return "torch.export, torch.onnx.export, torch.jit.trace or make_fx"
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        return "a backward pass, where torch.utils.checkpoint calls it again,"
    return None


def is_capturing(x: Tensor) -> bool:
    """Return whether what is done with `x` is captured in a CUDA graph."""
    is_there = not torch.compiler.is_compiling() and isinstance(x, Tensor) and x.is_cuda
    return is_there and torch.cuda.is_current_stream_capturing()


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


def _is_exported_by_dynamo() -> bool:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().export


# Dynamo asks while it traces, and guards the answer by itself; see torch.compiler.assume_constant_result.
for _query in (_is_transformed, _is_exported_by_dynamo):
    _query._dynamo_marked_constant = True


def _is_traced() -> bool:
    """Return whether the call is recorded into a program that this module is no part of."""
    if is_recorded():
        return True
    # torch 2.6 cannot say, nor torch 2.7 of a strict export: there Dynamo knows, and an export that does not go through
    # it is known by its proxies.
    if is_exporting():
        return True
    if torch.compiler.is_dynamo_compiling():
        return _DYNAMO_KNOWS and _is_exported_by_dynamo()
    proxy = torch._C._TorchDispatchModeKey.PROXY
    return (
        torch._C._get_dispatch_mode(proxy) is not None or torch._ops._get_dispatch_mode_pre_dispatch(proxy) is not None
    )


_DYNAMO_KNOWS = torch.__version__ < "2.8"  # compared as releases


class KeptState(RecurrentWeights):
    """Weights together with a state that lasts from call to call, where `stateful`.

    Attributes:
        _carried: the state. _batch_size: B where it was given beforehand.
    """

    stateful: bool
    time_major: bool
    _batch_size: int | None = None

    def __init__(self, units, **arguments) -> None:
        # Before the base, which may build: drawing weights begins the state anew.
        self._carried = CarriedState()
        super().__init__(units, **arguments)

    def _set_batch(self, input_shape) -> None:
        shape = tuple(input_shape)
        batch = shape[1 - self._time_axis] if len(shape) == 3 else None
        if self.stateful and batch is not None and self._carried.batch is None:
            self._batch_size = self._carried.batch = batch

    def _begin(self, x: Tensor, initial_state, dry: bool) -> Tensor | None:
        """Return the state the call begins with, (B,U) in the dtype of `x`, or None for zeros."""
        if self.stateful and not dry:
            self._check_can_carry(x)
        batch = x.shape[1 - self._time_axis]
        if initial_state is not None:
            initial_state = self._check_initial_state(initial_state, batch).to(x.dtype)
        carried = self._carried
        if not self.stateful or carried.batch is None:
            return initial_state
        if carried.batch != batch:
            steps = (None, carried.batch) if self.time_major else (carried.batch, None)
            raise ValueError(
                f'Input 0 of layer "{self.name}" is incompatible with the layer: `stateful=True` and `inputs`: '
                f"expected shape={(*steps, x.shape[-1])}, found shape={tuple(x.shape)}"
            )
        if carried.value is None:
            return initial_state
        kept = carried.read(self.recurrent_kernel)
        recorded = for_autograd(kept.to(x.dtype))
        if initial_state is None:
            return recorded
        if torch.compiler.is_compiling():
            return torch.where((kept != 0).any(), recorded, initial_state)
        if not bool((kept != 0).any()):
            return initial_state
        if not dry:
            warnings.warn(
                f"`initial_state` of the stateful layer {self.name} is ignored: its own state is not zero; "
                "call `reset_states()` first",
                UserWarning,
                stacklevel=5,
            )
        return recorded

    def _check_can_carry(self, x: Tensor) -> None:
        loss = find_loss()
        if loss is None and is_capturing(x):
            loss = "the capture of a CUDA graph"
        if loss is not None:
            raise RuntimeError(
                f"layer {self.name} has `stateful=True`, and {loss} cannot carry the state from call to call: use a "
                "layer with stateful=False and return_state=True, and pass the state in and out: "
                "`output, state = layer(x, initial_state=state)`"
            )

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self._carried.follow(self.recurrent_kernel, fn)
        return self

    def _replicate_for_data_parallel(self):
        if self.stateful:
            raise RuntimeError(
                f"layer {self.name} has `stateful=True`, and torch.nn.DataParallel throws its replicas away after each "
                "call, and their states: use DistributedDataParallel, where each process keeps its own"
            )
        return super()._replicate_for_data_parallel()

    def reset_parameters(self) -> None:
        """Draw the weights again from their initializers, and set the kept state to zeros."""
        super().reset_parameters()
        self._carried.value = None

    @property
    def states(self) -> list[Tensor | None]:
        """[the kept state (B,U)] of a stateful layer after its first call, else [None]."""
        return [None if self._carried.batch is None else self._carried.read(self.recurrent_kernel)]

    def get_initial_state(self, inputs) -> list[Tensor]:
        """Return [zeros (B,U)] for `inputs` (B,T,I), (T,B,I) if `time_major`: what a call begins with by default."""
        batch = inputs.shape[1 - self._time_axis]
        return [torch.zeros(batch, self.units, dtype=self.compute_dtype, device=inputs.device)]

    def reset_states(self, states=None) -> None:
        """Set the kept state to zeros, or to `states`: (B,U) or a list of it.

        Raises:
            AttributeError: the layer is not stateful.
            ValueError: the batch size is not known before the first call; a wrong count or shape of states. Then the
                state is as it was.
        """
        self._carried.value = self._check_states(states)

    def _check_states(self, states) -> Tensor | None:
        """Return what is to be kept in the place of the state, a copy of the one in `states`, None for zeros."""
        if not self.stateful:
            raise AttributeError(f"Layer must be stateful: layer {self.name} has `stateful=False`.")
        if self._carried.batch is None:
            raise ValueError(
                f"If a RNN is stateful, it needs to know its batch size: call layer {self.name} once before "
                "`reset_states()`."
            )
        if states is None:
            return None
        states = list(states) if isinstance(states, (tuple, list)) else [states]
        if len(states) != 1:
            raise ValueError(
                f"Layer {self.name} expects 1 states, but it received {len(states)} state values. "
                f"States received: `states`={states}"
            )
        value = to_tensor("states", states[0])
        expected = (self._carried.batch, self.units)
        if tuple(value.shape) != expected:
            raise ValueError(
                f"State 0 is incompatible with layer {self.name}: expected shape={expected} "
                f"but found `states` of shape={tuple(value.shape)}"
            )
        weight = self.recurrent_kernel
        return value.detach().to(weight.device, weight.dtype, copy=True)

    def _check_initial_state(self, value, batch: int) -> Tensor:
        if isinstance(value, (tuple, list)):
            if len(value) != 1:
                raise ValueError(
                    f"Layer has 1 states but was passed {len(value)} initial states. Received: `initial_state`={value}"
                )
            value = value[0]
        value = self._to_input(value, "initial_state")
        if tuple(value.shape) != (batch, self.units):
            raise ValueError(
                f"An `initial_state` was passed that is not compatible with the layer: expected shape (B,U) = "
                f"{(batch, self.units)}, got {tuple(value.shape)}"
            )
        return value


@contextlib.contextmanager
def unchanged_by_failure(*layers: KeptState) -> Iterator[None]:
    """Give stateful layers their states back where what is done with them raises."""
    before = [(layer._carried, layer._carried.batch, layer._carried.value) for layer in layers]
    try:
        yield
    except BaseException:
        for carried, batch, value in before:
            carried.batch, carried.value = batch, value
        raise
