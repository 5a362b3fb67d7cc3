"""GRUs of other packages on torch for the benchmark, each where it is installed: Keras 3, FlashRNN, torchrl, haste.

None of them is needed. Where one is missing, or cannot run a workload, its `UnavailableError` says why. On a CPU
FlashRNN and torchrl have loops of torch operations, which at least show that they are called rightly.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layouts import torch_to_keras
from .contenders import Contender, UnavailableError, as_numbers, import_peer
from .work import KEEP_RATE, Work


def keras(work: Work) -> Contender:
    """Return `keras.layers.GRU` of Keras 3 on its torch backend."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"
    module = import_peer("keras")
    if module.backend.backend() != "torch":
        raise UnavailableError(f"Keras runs on its {module.backend.backend()!r} backend, not on 'torch'")
    w = work.workload
    if w.resets:
        raise UnavailableError("keras.layers.GRU has no resets")
    layer = module.layers.GRU(
        w.units, activation=w.activation, reset_after=w.reset_after, return_sequences=True,
        recurrent_dropout=1 - KEEP_RATE if w.recurrent_dropout else 0.0, dtype=str(work.dtype).removeprefix("torch."),
    )  # fmt: skip
    with module.device("cuda" if work.device.type == "cuda" else "cpu"):
        layer.build((w.batch, w.time, w.input_size))
    kernel, recurrent_kernel, bias = torch_to_keras(*work.weights)
    layer.set_weights([as_numbers(v) for v in (kernel, recurrent_kernel, bias if w.reset_after else bias.sum(0))])
    weights = [variable.value for variable in layer.trainable_variables]

    def forward(number: int, x: Tensor) -> Tensor:
        mask = work.inputs[number].mask
        mask = None if mask is None else mask.t()
        return layer(x.transpose(0, 1), mask=mask, training=w.recurrent_dropout).transpose(0, 1)

    note = "draws its own dropout mask" if w.recurrent_dropout else ""
    return Contender(forward, weights, f"keras {module.__version__} {note}".strip(), not w.recurrent_dropout)


def flashrnn(work: Work) -> Contender:
    """Return FlashRNN's fused CUDA kernel, one head, after one product for all inputs."""
    _require_plain(work, "FlashRNN")
    function = import_peer("flashrnn").flashrnn
    w, U = work.workload, work.workload.units
    if work.dtype_name == "tf32":
        raise UnavailableError("FlashRNN has no tf32")
    weights = [value.detach().clone().requires_grad_() for value in work.weights]
    kernel, recurrent_kernel, bias_x, bias_h = weights
    backend = "cuda_fused" if work.device.type == "cuda" else "vanilla"
    dtype = str(work.dtype).removeprefix("torch.")

    def build(transposed: bool):
        def forward(number: int, x: Tensor) -> Tensor:
            gx = F.linear(x, kernel).transpose(0, 1).reshape(w.batch, w.time, 3, 1, U)
            r, z, n = recurrent_kernel.chunk(3)
            # Gates of the recurrent side: candidate, r, z; of the biases: candidate's recurrent one, r, z, candidate.
            square = torch.stack([part.t() if transposed else part for part in (n, r, z)])[:, None].contiguous()
            both = (bias_x + bias_h).chunk(3)
            bias = torch.stack((bias_h.chunk(3)[2], both[0], both[1], bias_x.chunk(3)[2]))[:, None]
            start = x.new_zeros(1, w.batch, 1, 1, U)
            states, _ = function(
                gx.contiguous(), square, bias, states=start, function="gru", backend=backend, dtype=dtype
            )
            return states[0].reshape(w.batch, w.time, U).transpose(0, 1)

        return forward

    # Its releases differ in which side of the recurrent matrix is the old state.
    for transposed in (False, True):
        forward = build(transposed)
        with torch.no_grad():
            if work.error(forward(0, work.inputs[0].x)) <= work.allowed_error:
                return Contender(forward, weights, f"{backend}, one head")
    raise UnavailableError("FlashRNN's outputs are not those of this GRU")


def torchrl(work: Work) -> Contender:
    """Return torchrl's GRUModule, on a GPU with its Triton kernels."""
    modules = import_peer("torchrl.modules")
    tensordict = import_peer("tensordict").TensorDict
    w = work.workload
    if w.lengths or w.recurrent_dropout or not w.reset_after or w.activation != "tanh":
        raise UnavailableError(f"torchrl's GRU has no {w.features}")
    backend = "triton" if work.device.type == "cuda" else "auto"
    module = modules.GRUModule(
        input_size=w.input_size, hidden_size=w.units, in_keys=["x", "h"], out_keys=["y", ("next", "h")],
        recurrent_backend=backend, default_recurrent_mode=True, device=work.device,
    ).to(work.dtype)  # fmt: skip
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), work.weights, strict=True):
            parameter.copy_(value)

    def forward(number: int, x: Tensor) -> Tensor:
        given = work.inputs[number]
        first = torch.zeros(w.batch, w.time, 1, dtype=torch.bool, device=x.device)
        first[:, 0] = True
        if given.resets is not None:
            first |= given.resets.t()[..., None]
        h = x.new_zeros(w.batch, w.time, 1, w.units)
        data = tensordict({"x": x.transpose(0, 1), "h": h, "is_init": first}, [w.batch, w.time])
        return module(data)["y"].transpose(0, 1)

    return Contender(forward, list(module.parameters()), f"recurrent_backend={backend}")


def haste(work: Work) -> Contender:
    """Return haste's GRU, which needs a CUDA device."""
    if work.device.type != "cuda":
        raise UnavailableError(f"device={work.device.type!r} is not 'cuda'")
    _require_plain(work, "haste")
    if work.dtype not in (torch.float32, torch.float64):
        raise UnavailableError(f"haste has no {work.dtype_name}")
    module = import_peer("haste_pytorch").GRU(work.workload.input_size, work.workload.units)
    kernel, recurrent_kernel, bias = torch_to_keras(*work.weights)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), (kernel, recurrent_kernel, *bias.unbind()), strict=True):
            parameter.copy_(value)
    return Contender(lambda number, x: module(x)[0], list(module.parameters()))


def _require_plain(work: Work, package: str) -> None:
    if work.workload.features:
        raise UnavailableError(f"{package}'s GRU has no {work.workload.features}")
