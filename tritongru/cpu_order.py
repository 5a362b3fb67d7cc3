"""In which order "auto" tries the backends of a CPU, by sizes.

The sizes are read off bench/results/dispatch/cpu.csv (bench/dispatch.py: aten, numba and eager side by side, one thread, on
AMD EPYCs and on an Intel Xeon, each with AVX2 and with AVX-512). A test holds the order to that table.
"""

from __future__ import annotations

from dataclasses import dataclass

from .call.problem import Shape

# numba packs torch's weights at each call; torch's own GRU reads them as they are. It is faster where few steps do not pay
# for that: with at least so many units for each step and so many rows of all steps together, fewer of which are not
# packed without gradients (`backends/numba/short.py`), nor those of one step. With gradients one step never pays.
UNITS_A_STEP, MANY_ROWS = 256, 33


def order_on_cpu(shape: Shape, wants_gradients: bool, reset_gate_first: bool) -> tuple[str, str, str]:
    """Return "numba", "aten" and "eager", the one expected to be the fastest first.

    Args:
        reset_gate_first: torch's weights; Keras's have to be put in another order for aten at each call.
    """
    is_large = shape.units >= UNITS_A_STEP * shape.time
    if shape.time == 1:
        packs = is_large and wants_gradients
    else:
        packs = is_large and shape.time * shape.batch >= MANY_ROWS
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
