"""GRUs of other runtimes for the benchmark on a CPU, each where it is installed: onnxruntime, OpenVINO, JAX.

They get the weights once, before the clock starts, the inputs in arrays of their own kind without a copy, and as many
threads as torch has. onnxruntime and OpenVINO know no gradients; JAX's are those of a compiled `lax.scan`.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

from ...layouts import torch_to_keras
from .contenders import INFERENCE, TRAINING, Contender, UnavailableError, as_numbers, import_peer
from .work import Work


def onnxruntime(work: Work) -> Contender:
    """Return the GRU of ONNX in an onnxruntime session."""
    _require_plain_float32(work, "onnxruntime")
    runtime = import_peer("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # Else its threads go on to turn while another contender has the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(_make_model(work), options, providers=["CPUExecutionProvider"])
    xs = [given.x.numpy() for given in work.inputs]

    def forward(number: int, _: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": xs[number]})[0]).squeeze(1)

    return Contender(forward, [], f"onnxruntime {runtime.__version__}", directions=(INFERENCE,))


def openvino(work: Work) -> Contender:
    """Return the GRU of ONNX, compiled by OpenVINO for its sizes and the least delay."""
    _require_plain_float32(work, "OpenVINO")
    module = import_peer("openvino")
    core = module.Core()
    # Its threads are not tied to cores, which would be taken from the other contenders.
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    compiled = core.compile_model(core.read_model(_make_model(work)), "CPU", settings)
    request, output = compiled.create_infer_request(), compiled.output(0)
    xs = [given.x.numpy() for given in work.inputs]

    def forward(number: int, _: Tensor) -> Tensor:
        # In memory that the next call writes to.
        results = request.infer({0: xs[number]}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[output]).squeeze(1)

    return Contender(forward, [], f"openvino {module.__version__}", directions=(INFERENCE,))


def jax(work: Work) -> Contender:
    """Return a `lax.scan` over the steps after one product for all inputs, compiled by JAX for its sizes."""
    _require_plain_float32(work, "JAX")
    module, U = _import_jax(torch.get_num_threads()), work.workload.units
    jnp, sigmoid = module.numpy, module.nn.sigmoid

    def run(weights, x):
        kernel, recurrent_kernel, bias_x, bias_h = weights

        def step(h, gx):
            gh = h @ recurrent_kernel + bias_h
            r, z = sigmoid(gx[:, :U] + gh[:, :U]), sigmoid(gx[:, U : 2 * U] + gh[:, U : 2 * U])
            n = jnp.tanh(gx[:, 2 * U :] + r * gh[:, 2 * U :])
            new = n + z * (h - n)
            return new, new

        return module.lax.scan(step, jnp.zeros((x.shape[1], U)), x @ kernel + bias_x)[1]

    def differentiate(weights, x, cotangent):
        return module.vjp(run, weights, x)[1](cotangent)

    kernel, recurrent_kernel, *biases = map(as_numbers, work.weights)
    weights = [jnp.asarray(value) for value in (kernel.T.copy(), recurrent_kernel.T.copy(), *biases)]
    xs = [jnp.asarray(as_numbers(given.x)) for given in work.inputs]
    cotangents = [jnp.asarray(as_numbers(given.cotangent)) for given in work.inputs]
    forward_alone, backward_too = module.jit(run), module.jit(differentiate)

    def forward(number: int, _: Tensor) -> Tensor:
        return torch.from_dlpack(module.block_until_ready(forward_alone(weights, xs[number])))

    def train(number: int) -> Tensor:
        found = module.block_until_ready(backward_too(weights, xs[number], cotangents[number]))
        return torch.from_dlpack(found[1])

    return Contender(forward, [], f"jax {module.__version__}", directions=(INFERENCE, TRAINING), train=train)


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino, "jax": jax}


def _require_plain_float32(work: Work, runtime: str) -> None:
    if work.device.type != "cpu":
        raise UnavailableError(f"{runtime} takes part on a CPU alone")
    if work.workload.features:
        raise UnavailableError(f"{runtime} takes part in plain calls, not in those with {work.workload.features}")
    if work.dtype_name != "float32":
        raise UnavailableError(f"{runtime} takes part in float32, not in {work.dtype_name}")


def _make_model(work: Work) -> bytes:
    """Return an ONNX model of one GRU, from "x" (T,B,I) to (T,1,B,U)."""
    onnx = import_peer("onnx")
    w, helper = work.workload, onnx.helper
    kernel, recurrent_kernel, bias = torch_to_keras(*work.weights)
    # ONNX has the gates in the order of Keras, and the weights transposed.
    values = {"w": kernel.t(), "r": recurrent_kernel.t(), "b": bias.flatten()}
    constants = [onnx.numpy_helper.from_array(as_numbers(value)[None], name) for name, value in values.items()]
    node = helper.make_node("GRU", ["x", "w", "r", "b"], ["y"], hidden_size=w.units, linear_before_reset=1)
    number = onnx.TensorProto.FLOAT
    given = helper.make_tensor_value_info("x", number, [w.time, w.batch, w.input_size])
    found = helper.make_tensor_value_info("y", number, [w.time, 1, w.batch, w.units])
    graph = helper.make_graph([node], "gru", [given], [found], constants)
    # Versions that every onnxruntime and OpenVINO of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _import_jax(threads: int):
    """Return JAX on the CPU with so many threads."""
    # It reads the number once, when it starts.
    if "jax" in sys.modules and os.environ.get("NPROC") != str(threads):
        raise UnavailableError(f"JAX was imported before, not with {threads} threads (NPROC in the environment)")
    os.environ.update(JAX_PLATFORMS="cpu", NPROC=str(threads))
    return import_peer("jax")
