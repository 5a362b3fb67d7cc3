"""The ways to compute a GRU that the benchmark puts side by side: this package's backends and torch's own.

Layers are in `layers.py`, other packages in `peers.py`, other runtimes in `runtimes.py`. Every contender gets the same
weights and inputs, time-major, and says by an `UnavailableError` why it cannot run a workload.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ...activations import get as get_activation
from ...call.arguments import Arguments
from ...call.errors import UnsupportedError
from ...environment import is_interpreted
from ...functional import explain_call, gru
from ...tuning import configs
from .work import Work

INFERENCE, FORWARD, TRAINING = "inference", "forward", "forward+backward"
DIRECTIONS = (INFERENCE, FORWARD, TRAINING)


class UnavailableError(RuntimeError):
    """A contender cannot run a workload; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A GRU ready to be called.

    Attributes:
        forward: from the number of a set of inputs and its x (T,B,I) to outputs (T,B,U).
        weights: the tensors a training step wants gradients of, beside x.
        note: conditions that a reader of its numbers must know. note_of: those that depend on the direction.
        same_numbers: whether its outputs must be those of the reference.
        enter: gives the context that a call, its backward pass included, runs in.
        directions: those it can run. train: from the number of a set of inputs to the gradient of x, for a contender
            whose gradients are not autograd's.
    """

    forward: Callable[[int, Tensor], Tensor]
    weights: list[Tensor]
    note: str = ""
    same_numbers: bool = True
    enter: Callable[[], AbstractContextManager] = nullcontext
    note_of: Callable[[str], str] = lambda direction: ""
    directions: tuple[str, ...] = DIRECTIONS
    train: Callable[[int], Tensor] | None = None


def make_call(contender: Contender, work: Work, direction: str) -> Callable[[int], Tensor]:
    """Return the call that is timed: it takes the number of a sample and gives outputs, or the gradient of x."""
    sets, train = work.inputs, contender.train
    if direction == TRAINING and train is not None:
        return lambda number: train(number % len(sets))
    # x takes part in the gradient, as it does in every layer but the first.
    xs = [given.x if direction == INFERENCE else given.x.detach().requires_grad_() for given in sets]

    def call(number: int) -> Tensor:
        chosen = number % len(sets)
        with contender.enter(), torch.set_grad_enabled(direction != INFERENCE):
            outputs = contender.forward(chosen, xs[chosen])
            if direction != TRAINING:
                return outputs
            return torch.autograd.grad(outputs, [xs[chosen], *contender.weights], sets[chosen].cotangent)[0]

    return call


def own(
    work: Work,
    backend: str,
    recompute: bool = False,
    config: configs.LaunchConfig | Mapping[str, configs.LaunchConfig] | None = None,
) -> Contender:
    """Return `tritongru.gru` on a backend, "auto" included; `config` as `launch.use_config` takes it."""
    w = work.workload
    weights = [value.detach().clone().requires_grad_() for value in work.weights]
    kernel, recurrent_kernel, *bias = weights

    def arguments(number: int, x: Tensor) -> dict:
        given = work.inputs[number]
        return dict(
            x=x, kernel=kernel, recurrent_kernel=recurrent_kernel, bias=tuple(bias), activation=w.activation,
            reset_after=w.reset_after, mask=given.mask, resets=given.resets, recurrent_dropout=given.drop,
            time_major=True, layout="torch", recompute=recompute,
        )  # fmt: skip

    def note_of(direction: str) -> str:
        # The choice can depend on whether gradients are wanted.
        with torch.set_grad_enabled(direction != INFERENCE):
            decision = explain_call(Arguments(**arguments(0, work.inputs[0].x)), backend)
        interpreted = "interpreted" if decision.backend == "triton" and is_interpreted() else ""
        return ", ".join(filter(None, (f"is {decision.backend} here" if backend == "auto" else "", interpreted)))

    try:
        note_of(TRAINING)
    except UnsupportedError as error:
        raise UnavailableError("; ".join(error.rejected.get(backend, (str(error),)))) from None

    def forward(number: int, x: Tensor) -> Tensor:
        return gru(**arguments(number, x), backend=backend)[0]

    if config is None:
        return Contender(forward, weights, note_of=note_of)
    from ...backends.triton.scan import use_config

    return Contender(forward, weights, str(config), enter=lambda: use_config(config), note_of=note_of)


def schedule(work: Work, name: str) -> Contender:
    """Return the Triton kernels in one schedule, with the configuration chosen for it."""
    from ...tuning.devices import device_limits

    w = work.workload
    device = device_limits(work.device)
    config = config_for(name, w.units, w.batch, work.dtype.itemsize, device, w.recurrent_dropout)
    return own(work, "triton", config=config)


def config_for(
    name: str, units: int, batch: int, itemsize: int, device: configs.Device, has_dropout: bool
) -> configs.LaunchConfig:
    """Return the launch configuration of one schedule for a problem.

    Raises:
        UnavailableError: the device cannot hold the problem in that schedule.
    """
    if name == configs.STEPS:
        # What is chosen where nothing fits.
        none = configs.Device(device.processors, 0, cooperative=False, warp_size=device.warp_size)
        return configs.choose(units, batch, itemsize, none, has_dropout)
    chosen = configs.choose(units, batch, itemsize, device, has_dropout)
    if chosen.schedule == name:
        return chosen
    if name == configs.SINGLE:
        raise UnavailableError(f"units={units} with {itemsize} bytes an element do not fit one program")
    block_k = 32 if name == configs.STREAMED else min(64, configs.next_power_of_two(units))
    for block_h in (32, 16):
        config = configs.LaunchConfig(name, 16, block_h, block_k, 4)
        if not configs.reasons_against(config, units, batch, itemsize, device):
            return config
    raise UnavailableError(f"units={units}, batch={batch} need more programs than the device holds at once")


def torch_gru(work: Work, packed: bool = False) -> Contender:
    """Return `torch.nn.GRU`, padded or with packed sequences."""
    w = work.workload
    lacking = w.features.replace("lengths", "").strip()
    if lacking:
        raise UnavailableError(f"torch.nn.GRU has no {lacking}")
    if packed and not w.lengths:
        raise UnavailableError("all rows have the same length")
    module = nn.GRU(w.input_size, w.units, device=work.device, dtype=work.dtype)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), work.weights, strict=True):
            parameter.copy_(value)
    weights = list(module.parameters())
    if not packed:
        return Contender(lambda number, x: module(x)[0], weights, "ignores lengths" if w.lengths else "")

    def forward(number: int, x: Tensor) -> Tensor:
        together = pack_padded_sequence(x, work.inputs[number].lengths, enforce_sorted=False)  # type: ignore[arg-type]
        return pad_packed_sequence(module(together)[0], total_length=w.time)[0]

    return Contender(forward, weights, "packing and unpacking included")


def loop(work: Work) -> Contender:
    """Return the loop one writes by hand in torch: one product for all inputs, then a step at a time."""
    w = work.workload
    weights = [value.detach().clone().requires_grad_() for value in work.weights]
    kernel, recurrent_kernel, bias_x, bias_h = weights
    U = w.units
    activation = get_activation(w.activation)

    def forward(number: int, x: Tensor) -> Tensor:
        given = work.inputs[number]
        h = x.new_zeros(w.batch, U)
        gx = F.linear(x, kernel, bias_x)
        outputs = []
        for t in range(w.time):
            if given.resets is not None:
                h = torch.where(given.resets[t, :, None], 0.0, h)
            dropped = h if given.drop is None else h * given.drop
            gx_r, gx_z, gx_n = gx[t].chunk(3, dim=-1)
            if w.reset_after:
                gh_r, gh_z, gh_n = F.linear(dropped, recurrent_kernel, bias_h).chunk(3, dim=-1)
                r, z = torch.sigmoid(gx_r + gh_r), torch.sigmoid(gx_z + gh_z)
                n = activation(gx_n + r * gh_n)
            else:
                gates = F.linear(dropped, recurrent_kernel[: 2 * U], bias_h[: 2 * U])
                r, z = torch.sigmoid(gx[t, :, : 2 * U] + gates).chunk(2, dim=-1)
                n = activation(gx_n + F.linear(r * dropped, recurrent_kernel[2 * U :], bias_h[2 * U :]))
            new = n + z * (h - n)
            h = new if given.mask is None else torch.where(given.mask[t, :, None], new, h)
            outputs.append(h)
        return torch.stack(outputs)

    return Contender(forward, weights)


def import_peer(name: str) -> ModuleType:
    """Return another package's module; UnavailableError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{name} cannot be imported: {error}") from None


def as_numbers(value: Tensor) -> numpy.ndarray:
    """Return the values of a tensor in float32, for a package that does not know tensors."""
    return value.detach().float().cpu().numpy()
