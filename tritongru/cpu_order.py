"""In which order "auto" tries the backends of a CPU, by sizes.

The sizes are read off bench/results/dispatch/cpu.csv (bench/dispatch.py: aten, numba and eager side by side, one
thread, on AMD EPYCs and on an Intel Xeon, each with AVX2 and with AVX-512). A test holds the order to that table. The
second cache tells the two apart: where it is large, the third is slow, and weights that lie there are better read once.
"""

from __future__ import annotations

from .call.problem import Shape

# numba packs the weights at each call, or reads those of few rows where they lie (`backends/numba/short.py`). A
# library's product of many rows, in torch's own GRU or in the eager scan, is faster where few steps do not pay for
# that: with so many rows of all steps together, and at least so many units for each step.
MANY_ROWS, UNITS_A_STEP = 33, 192
# With so many units weights are far away from the processor, and packing them never pays. With a large second cache
# Keras's are far away with fewer, though not with fewer than LEAST_UNITS.
FAR_UNITS, FAR_UNITS_OF_KERAS, LEAST_UNITS = 2048, 1024, 768
# One step is not packed; with gradients of so many rows and units a library sums faster. With a large second cache none
# does, in any number of steps.
STEP_ROWS, STEP_UNITS = 16, 512


def order_on_cpu(
    shape: Shape, wants_gradients: bool, reset_gate_first: bool, has_large_cache: bool
) -> tuple[str, str, str]:
    """Return "numba", "aten" and "eager", the one expected to be the fastest first.

    Args:
        reset_gate_first: torch's weights; Keras's have to be put in another order for aten at each call.
        has_large_cache: the processor's cores have a large second cache, see `environment.has_large_cache`.
    """
    if _prefers_library(shape, wants_gradients, reset_gate_first, has_large_cache):
        return ("aten", "numba", "eager") if reset_gate_first else ("eager", "numba", "aten")
    if prefers_eager(shape, wants_gradients, reset_gate_first):
        return "numba", "eager", "aten"
    return "numba", "aten", "eager"


def _prefers_library(shape: Shape, wants_gradients: bool, reset_gate_first: bool, has_large_cache: bool) -> bool:
    """Return whether a library's product of the weights as they lie is expected to be faster than numba."""
    T, B, U = shape.time, shape.batch, shape.units
    if wants_gradients:
        is_many = (B >= STEP_ROWS and U >= STEP_UNITS) if T == 1 else (T * B >= MANY_ROWS and U >= UNITS_A_STEP * T)
        return is_many and reset_gate_first and not has_large_cache
    if T == 1 or T * B < MANY_ROWS:
        return False
    if reset_gate_first:
        return U >= min(UNITS_A_STEP * T, FAR_UNITS)
    if not has_large_cache:
        return U >= max(UNITS_A_STEP * T, FAR_UNITS)
    return U >= max(LEAST_UNITS, min(UNITS_A_STEP * T, FAR_UNITS_OF_KERAS))


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
