"""How far a result may be from the truth: the one rule that `compare` and the tests hold every backend to.

The truth is the oracle in float64, on inputs already rounded to the dtype under test. A backend's largest absolute
error may be twice that of the oracle in the dtype under test, and a floor:

    err(backend) <= 2 err(oracle in the same dtype) + k eps max|truth|

The oracle's own error stands for what rounding does to this very problem; the factor 2 allows another order of the same
sums. The floor covers the cases where the oracle happens to be exact: k is 2 for half precision, whose sums run in
float32 and are rounded once, 8 for float32, and 32 for float64, where truth and oracle are one and the floor is all.

That holds where a step does not enlarge errors. Where it may (`enlarges_errors`) the first roundings decide, the
oracle's error is one draw from a wide range, and the oracle's error above is replaced by the largest of it and of what
one rounding of the inputs changes in float64, over `MOVES` draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ORACLE_FACTOR = 2.0
FLOOR_IN_EPSILONS = {torch.float64: 32.0, torch.float32: 8.0, torch.float16: 2.0, torch.bfloat16: 2.0}

# The unit in the last place of a float32 product's operands, by the way it is computed. TF32 keeps 10 bits of mantissa,
# bfloat16 7; three products of split operands keep about twice the bits of one.
PRODUCT_EPSILON = {"tf32": 2.0**-10, "tf32x3": 2.0**-21, "bf16x3": 2.0**-16}

# Recurrent activations with values from 0 to 1: z h + (1 - z) n lies between h and n, and no old error grows by it.
MIXING = ("sigmoid", "hard_sigmoid")
# How many random roundings of the inputs stand for all of them.
MOVES = 8


def enlarges_errors(recurrent_activation: str) -> bool:
    """Return whether a step may enlarge the error of the state: z may be negative, so that 1 - z is above one.

    >>> enlarges_errors("sigmoid"), enlarges_errors("tanh")
    (False, True)
    """
    return recurrent_activation not in MIXING


def move(value: Tensor, relative: float, generator: torch.Generator) -> Tensor:
    """Return `value` in float64, each number made larger or smaller by `relative` of itself, at random."""
    signs = torch.randint(0, 2, value.shape, generator=generator).to(value.device) * 2 - 1
    return value.double() * (1 + relative * signs)


def machine_epsilon(dtype: torch.dtype, precision: str = "ieee") -> float:
    """Return the epsilon that bounds a result in `dtype` whose float32 products are computed in `precision`.

    >>> machine_epsilon(torch.float16)
    0.0009765625
    """
    own = torch.finfo(dtype).eps
    return max(own, PRODUCT_EPSILON.get(precision, 0.0)) if dtype == torch.float32 else own


def largest_error(value: Tensor, truth: Tensor) -> float:
    """Return max|value - truth|, computed in float64; 0 for empty tensors, NaN if any element is NaN."""
    if value.shape != truth.shape:
        raise ValueError(f"`value` has shape {tuple(value.shape)}, `truth` {tuple(truth.shape)}")
    if not value.numel():
        return 0.0
    return float((value.detach().double() - truth.detach().double()).abs().max())


def tolerance(
    oracle: Tensor,
    truth: Tensor,
    dtype: torch.dtype,
    precision: str = "ieee",
    amplification: float = 1.0,
    moved: Sequence[Tensor] = (),
) -> float:
    """Return the largest error allowed.

    Args:
        oracle: the oracle's result in `dtype`. truth: its result in float64, on the same inputs.
        precision: how float32 products are computed.
        amplification: by how much the problem itself enlarges rounding: for gradients through saturated gates, the
            largest pre-activation, because the slope there is exp(-|a|) and a is known to eps |a|.
        moved: the oracle's results in float64 on inputs one rounding away, for a call that enlarges errors.
    """
    # Below the smallest normal number the spacing no longer shrinks with the value.
    scale = max(float(truth.detach().abs().max()) if truth.numel() else 0.0, torch.finfo(dtype).tiny)
    floor = FLOOR_IN_EPSILONS[dtype] * machine_epsilon(dtype, precision) * scale * amplification
    return ORACLE_FACTOR * max(largest_error(value, truth) for value in (oracle, *moved)) + floor


def check(
    name: str,
    value: Tensor,
    oracle: Tensor,
    truth: Tensor,
    precision: str = "ieee",
    amplification: float = 1.0,
    moved: Sequence[Tensor] = (),
) -> None:
    """Raise AssertionError, naming the quantity, unless `value` is within the tolerance of its own dtype."""
    error = largest_error(value, truth)
    allowed = tolerance(oracle, truth, value.dtype, precision, amplification, moved)
    if not error <= allowed:
        raise AssertionError(f"{name}: error {error:.3g} exceeds the tolerance {allowed:.3g}")
