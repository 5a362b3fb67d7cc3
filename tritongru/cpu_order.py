"""In which order "auto" tries the backends of a CPU, by sizes.

The sizes are read off bench/results/dispatch/cpu.csv (bench/dispatch.py: aten, numba and eager side by side, one thread, on
AMD EPYCs and on an Intel Xeon, each with AVX2 and with AVX-512). A test holds the order to that table.
"""

from __future__ import annotations

from dataclasses import dataclass

from .call.problem import Shape

# numba packs the weights at each call, or reads those of few rows where they lie (`backends/numba/short.py`). A library's
# product of many rows, in torch's own GRU or in the eager scan, is faster where few steps do not pay for that: with so many
# rows of all steps together, and at least so many units for each step.
MANY_ROWS, UNITS_A_STEP = 33, 192
# With so many units weights are far away from the processor, and packing them never pays; Keras's with fewer, and not with
# fewer than LEAST_UNITS. One step of so many rows of theirs jumps from line to line.
FAR_UNITS, FAR_UNITS_OF_KERAS, LEAST_UNITS, JUMPING_ROWS = 2048, 1024, 768, 16


def order_on_cpu(shape: Shape, wants_gradients: bool, reset_gate_first: bool) -> tuple[str, str, str]:
    """Return "numba", "aten" and "eager", the one expected to be the fastest first.

    Args:
        reset_gate_first: torch's weights; Keras's have to be put in another order for aten at each call.
    """
    T, U, has_many = shape.time, shape.units, shape.time * shape.batch >= MANY_ROWS
    if reset_gate_first:
        # One step without gradients is not packed.
        packs = wants_gradients if T == 1 else has_many
        if packs and U >= (UNITS_A_STEP * T if wants_gradients else min(UNITS_A_STEP * T, FAR_UNITS)):
            return "aten", "numba", "eager"
    elif not wants_gradients:
        is_far = U >= LEAST_UNITS and U >= min(UNITS_A_STEP * T, FAR_UNITS_OF_KERAS)
        if is_far and (shape.batch >= JUMPING_ROWS if T == 1 else has_many):
            return "eager", "numba", "aten"
    is_step = T == 1 and not wants_gradients and not reset_gate_first
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
