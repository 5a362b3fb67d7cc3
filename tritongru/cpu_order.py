"""In which order "auto" tries the backends of a CPU, by sizes.

The sizes are read off bench/results/dispatch/cpu.csv (bench/dispatch.py: aten, numba and eager side by side, one
thread, on AMD EPYCs and on an Intel Xeon, each with AVX2 and with AVX-512). A test holds the order to that table.
"""

from __future__ import annotations

from .call.problem import Shape

# numba packs the weights at each call, or reads those of few rows where they lie (`backends/numba/short.py`). A
# library's product of many rows, in torch's own GRU or in the eager scan, is faster where few steps do not pay for
# that: with so many rows of all steps together, and at least so many units for each step.
MANY_ROWS, UNITS_A_STEP = 33, 192
# With so many units weights are far away from the processor, and packing them never pays; Keras's with fewer, and not
# with fewer than LEAST_UNITS. One step of so many rows of theirs jumps from line to line.
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
    if prefers_eager(shape, wants_gradients, reset_gate_first):
        return "numba", "eager", "aten"
    return "numba", "aten", "eager"


# For an installation without numba. With gradients the eager scan's calls pass an autograd.Function, which pays from so
# many steps on. Without, it is faster where its steps read the weights as they are, up to so many
# (`backends/eager/short.py`): torch's, and Keras's, which aten has to put in order first. Else its weights are copied
# once for each call, which pays for many steps, or large products: T, T B U U, and T B / U. Read off cpu.csv, without
# numba's rows.
TRAINING_STEPS = 16
SHORT_STEPS, SHORT_STEPS_OF_KERAS = 2, 8
LONG_STEPS, LEAST_STEPS, LEAST_PRODUCTS, LEAST_ROWS_PER_UNIT = 512, 48, 1 << 27, 0.5


def prefers_eager(shape: Shape, wants_gradients: bool, reset_gate_first: bool) -> bool:
    """Return whether the eager scan is expected to be faster than torch's own GRU on a CPU."""
    T, rows, U = shape.time, shape.time * shape.batch, shape.units
    if wants_gradients:
        return T >= TRAINING_STEPS
    if T <= (SHORT_STEPS if reset_gate_first else SHORT_STEPS_OF_KERAS) or T >= LONG_STEPS:
        return True
    return T >= LEAST_STEPS and rows * U**2 >= LEAST_PRODUCTS and rows >= LEAST_ROWS_PER_UNIT * U
