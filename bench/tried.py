"""Other ways to run a GRU on a CPU that were tried, beside the scan in numba: the figures of docs/cpu.md.

    python bench/tried.py       about five minutes; needs a C++ compiler, ninja and onnxruntime

Writes bench/results/cpu_tried.csv: microseconds of a step, in one process and in turn, and the seconds until a route is
ready (its compilation).
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tritongru.tools.benchmark import contenders, runtimes  # noqa: E402
from tritongru.tools.benchmark.contenders import INFERENCE, TRAINING, Contender, make_call  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402
from tritongru.tools.benchmark.timing import measure  # noqa: E402
from tritongru.tools.benchmark.work import Work  # noqa: E402
from tritongru.tools.benchmark.workloads import Workload  # noqa: E402

TABLE = ROOT / "bench" / "results" / "cpu_tried.csv"
SIZES = ((1000, 1, 40, 64), (100, 32, 64, 128), (100, 64, 256, 256))
FIELDS = (
    "date", "device", "torch", "threads", "direction", "T", "B", "I", "U", "route", "us_per_step", "over_numba",
    "seconds_until_ready",
)  # fmt: skip

# One product per step and one pass over the gates, in a loop that does not return to Python.
SOURCE = """
#include <torch/extension.h>
#include <cmath>
at::Tensor run(at::Tensor x, at::Tensor w, at::Tensor u, at::Tensor bx, at::Tensor bh) {
  const int64_t T = x.size(0), B = x.size(1), U = u.size(0);
  auto gx = at::addmm(bx, x.flatten(0, 1), w).view({T, B, 3 * U});
  auto out = at::empty({T, B, U}, x.options()), gh = at::empty({B, 3 * U}, x.options());
  auto h = at::zeros({B, U}, x.options());
  for (int64_t t = 0; t < T; ++t) {
    at::addmm_out(gh, bh, h, u);
    const float *g = gx.data_ptr<float>() + t * B * 3 * U, *s = gh.data_ptr<float>(), *old = h.data_ptr<float>();
    float *o = out.data_ptr<float>() + t * B * U;
    at::parallel_for(0, B, 8, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const float *gb = g + b * 3 * U, *sb = s + b * 3 * U;
        #pragma GCC ivdep
        for (int64_t j = 0; j < U; ++j) {
          const float r = 1.f / (1.f + std::exp(-gb[j] - sb[j])), z = 1.f / (1.f + std::exp(-gb[U + j] - sb[U + j]));
          const float n = std::tanh(gb[2 * U + j] + r * sb[2 * U + j]);
          o[b * U + j] = n + z * (old[b * U + j] - n);
        }
      }
    });
    h = out[t];
  }
  return out;
}
"""


def loop(x: Tensor, kernel: Tensor, recurrent_kernel: Tensor, bias_x: Tensor, bias_h: Tensor) -> Tensor:
    """The GRU (T,B,I) -> (T,B,U) as a loop of torch operations, for TorchScript."""
    h = torch.zeros(x.shape[1], recurrent_kernel.shape[1])
    gx = torch.nn.functional.linear(x, kernel, bias_x)
    outputs: list[Tensor] = []
    for t in range(x.shape[0]):
        gh = torch.nn.functional.linear(h, recurrent_kernel, bias_h)
        gx_r, gx_z, gx_n = gx[t].chunk(3, -1)
        gh_r, gh_z, gh_n = gh.chunk(3, -1)
        n = torch.tanh(gx_n + torch.sigmoid(gx_r + gh_r) * gh_n)
        h = n + torch.sigmoid(gx_z + gh_z) * (h - n)
        outputs.append(h)
    return torch.stack(outputs)


def step(gx: Tensor, gh: Tensor, h: Tensor) -> Tensor:
    """The gates of one step, for Inductor."""
    gx_r, gx_z, gx_n = gx.chunk(3, -1)
    gh_r, gh_z, gh_n = gh.chunk(3, -1)
    n = torch.tanh(gx_n + torch.sigmoid(gx_r + gh_r) * gh_n)
    return n + torch.sigmoid(gx_z + gh_z) * (h - n)


def leaves(work: Work) -> list[Tensor]:
    """Return weights that gradients are wanted of."""
    return [value.detach().clone().requires_grad_() for value in work.weights]


def script(work: Work) -> Contender:
    """Return torch.jit.script of the loop."""
    weights, function = leaves(work), torch.jit.script(loop)
    return Contender(lambda number, x: function(x, *weights), weights)


def inductor(work: Work) -> Contender:
    """Return a loop whose gates are compiled by torch.compile; the loop itself would be unrolled over all steps."""
    weights, function = leaves(work), torch.compile(step, dynamic=False)
    kernel, recurrent_kernel, bias_x, bias_h = weights

    def forward(number: int, x: Tensor) -> Tensor:
        gx = torch.nn.functional.linear(x, kernel, bias_x)
        h, outputs = x.new_zeros(x.shape[1], recurrent_kernel.shape[1]), []
        for given in gx.unbind(0):
            h = function(given, torch.nn.functional.linear(h, recurrent_kernel, bias_h), h)
            outputs.append(h)
        return torch.stack(outputs)

    return Contender(forward, weights)


def extension(work: Work) -> Contender:
    """Return a loop in C++: torch's product and one pass over the gates per step."""
    from torch.utils.cpp_extension import load_inline

    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp"]
    module = load_inline("tritongru_tried", SOURCE, functions=["run"], extra_cflags=flags)
    kernel, recurrent_kernel, *biases = work.weights
    weights = [kernel.t().contiguous(), recurrent_kernel.t().contiguous(), *biases]
    return Contender(lambda number, x: module.run(x, *weights), [], directions=(INFERENCE,))


def numba(work: Work) -> Contender:
    """Return this package's scan."""
    return contenders.own(work, "numba")


ROUTES = {
    "numba": numba, "torch.nn.GRU": contenders.torch_gru, "torch.jit.script of the loop": script,
    "Inductor for the gates": inductor, "C++ extension": extension, "onnxruntime": runtimes.onnxruntime,
}  # fmt: skip


def main() -> int:
    """Measure every route at every size, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table that is written")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each route, size and direction")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where, rows = conditions(torch.device("cpu")), []
    for T, B, I, U in SIZES:
        work, built, ready = Work(Workload("tried", T, B, I, U), "float32"), {}, {}
        for name, build in ROUTES.items():
            begin = time.perf_counter()
            contender = build(work)
            for direction in (INFERENCE, TRAINING):
                if direction in contender.directions:
                    call = make_call(contender, work, direction)
                    for number in range(3):  # TorchScript compiles in its second call
                        outputs = call(number)
                    if direction == INFERENCE and work.error(outputs, 2) > work.allowed_error:
                        raise RuntimeError(f"{name}: outputs are {work.error(outputs, 2)} from the reference")
            built[name], ready[name] = contender, time.perf_counter() - begin
        for direction in (INFERENCE, TRAINING):
            calls = {n: make_call(c, work, direction) for n, c in built.items() if direction in c.directions}
            found = measure(calls, "cpu", options.seconds)
            for name, timing in found.items():
                rows.append(where | {
                    "direction": direction, "T": T, "B": B, "I": I, "U": U, "route": name,
                    "us_per_step": f"{timing.p50 * 1e3 / T:.4g}",
                    "over_numba": f"{timing.p50 / found['numba'].p50:.3g}", "seconds_until_ready": f"{ready[name]:.2g}",
                })  # fmt: skip
                print(direction, T, B, I, U, name, rows[-1]["us_per_step"], rows[-1]["over_numba"], flush=True)
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
