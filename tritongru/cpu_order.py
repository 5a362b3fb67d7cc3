"""In which order "auto" tries the backends of a CPU, by sizes.

The sizes are read off bench/results/dispatch/cpu.csv (bench/dispatch.py: aten, numba and eager side by side on AMD
EPYCs with AVX2 and with AVX-512, one thread). A test holds the order to that table.
"""

from __future__ import annotations

from dataclasses import dataclass

from .call.problem import Shape

# numba packs the weights and, for gradients, passes an autograd.Function, whose backward pass is called from Python.
# Few steps do not pay for that; torch's own GRU is one call in C++.
# Below these steps aten is faster.
FEW_TRAINING_STEPS = 4
# Without gradients few rows are not packed at all (`backends/numba/short.py`): aten is faster for more rows than that,
# where the weights are large for the steps that they are packed for.
MANY_ROWS, UNITS_A_STEP = 33, 256


def order_on_cpu(shape: Shape, wants_gradients: bool, reset_gate_first: bool) -> tuple[str, str, str]:
    """Return "numba", "aten" and "eager", the one expected to be the fastest first.

    Args:
        reset_gate_first: torch's weights; Keras's have to be put in another order for aten at each call.
    """
    if wants_gradients:
        is_first = shape.time >= FEW_TRAINING_STEPS
    else:
        packs = shape.time * shape.batch >= MANY_ROWS and shape.units >= UNITS_A_STEP * shape.time
        is_first = not (reset_gate_first and packs)
    is_step = shape.time == 1 and not wants_gradients and not reset_gate_first
    if not is_first:
        return "aten", "numba", "eager"
    eager_next = is_step or prefers_eager(shape, wants_gradients)
    return ("numba", "eager", "aten") if eager_next else ("numba", "aten", "eager")


@dataclass(frozen=True)
class Threshold:
    """From which size the eager scan is faster than torch's GRU: from `steps` on, or where all the others are reached.

    Attributes:
        steps: T alone. least_steps: T. products: T B U U. rows_per_unit: T B / U, which pays for copying weights.
    """

    steps: int
    least_steps: int
    products: int
    rows_per_unit: float


# For an installation without numba. The eager scan costs more per call and less per step: its weights are copied once,
# and with gradients its calls pass an autograd.Function. Read off cpu.csv, without numba's rows.
EAGER_FROM = {"training": Threshold(32, 16, 1 << 24, 0.5), "inference": Threshold(512, 48, 1 << 27, 0.5)}


def prefers_eager(shape: Shape, wants_gradients: bool) -> bool:
    """Return whether the eager scan is expected to be faster than torch's own GRU on a CPU."""
    least = EAGER_FROM["training" if wants_gradients else "inference"]
    rows = shape.time * shape.batch
    if shape.time >= least.steps:
        return True
    is_large = rows * shape.units**2 >= least.products and rows >= least.rows_per_unit * shape.units
    return shape.time >= least.least_steps and is_large
