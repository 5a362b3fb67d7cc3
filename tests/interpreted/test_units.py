"""Every size class and dtype with the launch configuration that users get: outputs, gradients, and the same bits again.

In the interpreter one small size runs, so that the test itself is known to work; compiled, all of them.
"""

import pytest
import torch

from tritongru.environment import is_interpreted
from tritongru.tools.oracle.cases import Case, make_arguments, run_case
from tritongru.tools.oracle.compare import compare_backend

INTERPRETED = is_interpreted()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
UNITS = (9,) if INTERPRETED else (1, 9, 64, 100, 128, 192, 256, 512, 650, 768, 1024, 1536, 2048)
DTYPES = ("bfloat16",) if INTERPRETED else ("float32", "tf32", "float16", "bfloat16")
VARIANTS = {
    "plain": dict(batch=1, time=5, input_size=7),
    "every-flag": dict(
        batch=17, time=4, input_size=3, mask=True, resets=True, reset_state="rows", recurrent_dropouts=3,
        go_backwards=True, layout="torch", zero_output_for_mask=True,
    ),
    "reset-before": dict(batch=65, time=3, input_size=2, reset_after=False, lengths=True, recompute=True),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units", UNITS)
def test_units(units, dtype, variant):
    precision = "tf32" if dtype == "tf32" else "auto" if dtype != "float32" else "ieee"
    sizes = dict(VARIANTS[variant])
    if units == 1:
        # The tolerance comes from the oracle's own error, which one lucky element would make nothing.
        sizes["batch"] = max(sizes["batch"], 16)
    case = Case(units=units, dtype=dtype.replace("tf32", "float32"), precision=precision, **sizes)
    rows = compare_backend(case, "triton", DEVICE)
    assert len(rows) >= 6
    assert [row for row in rows if row.verdict != "ok"] == []
    arguments = make_arguments(case, DEVICE)
    first, again = (run_case(arguments, "triton", case.seed) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
