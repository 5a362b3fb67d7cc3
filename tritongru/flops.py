"""What `torch.utils.flop_counter.FlopCounterMode` counts for this package's operators: 2 m n k for a product.

That module imports Triton, so this one registers with it in the first call that finds it imported already.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .backends.gradients import RECOMPUTE
from .backends.members import Group
from .call.problem import Inputs


def register() -> None:
    """Make every `FlopCounterMode` count this package's operators: those that are counting now, and later ones."""
    counter = importlib.import_module("torch.utils.flop_counter")
    registry = counter.flop_registry
    formulas = {getattr(torch.ops.tritongru, name): count for name, count in _COUNTS.items()}
    for operator, count in formulas.items():
        if operator not in registry:
            counter.register_flop_formula(operator)(_by_name(operator, count))
    for mode in _get_current_dispatch_mode_stack():
        counting: Any = getattr(mode, "counter", mode)  # in some releases of torch the mode itself
        if isinstance(counting, counter.FlopCounterMode):  # it copied what was registered when it was made
            own = {operator: registry[operator] for operator in formulas}
            counting.flop_registry = own | counting.flop_registry


def register_where_loaded() -> None:
    """`register`, where the program may count operations."""
    if not torch.compiler.is_compiling() and "torch.utils.flop_counter" in sys.modules:
        register()


def _by_name(operator: Any, count: Callable[[dict], int]) -> Callable[..., int]:
    """Return a formula as torch calls it: with the operator's arguments, shapes in place of tensors."""
    names = [argument.name for argument in operator.default._schema.arguments]
    return lambda *args, out_shape=None, **kwargs: count(dict(zip(names, args, strict=False)) | kwargs)


def _project(a: dict) -> int:
    """The input's product with its kernel; none where the input came projected."""
    return 0 if a["w"] is None else 2 * math.prod(a["x"]) * a["w"][1]


def _recur(a: dict) -> int:
    """The state's product with the recurrent kernel, over all steps."""
    time, batch = a["x"][:2]
    return 2 * time * batch * math.prod(a["u"])


def _scan(a: dict) -> int:
    return _project(a) + _recur(a)


def _scan_backward(a: dict) -> int:
    wanted = Inputs(*a["wanted"])
    rebuilt = _scan(a) if a["save"] == RECOMPUTE else 0
    return rebuilt + _project(a) * (wanted.x + wanted.w) + _recur(a) * (1 + wanted.u)  # type: ignore[operator]


def _of_each(count: Callable[[dict], int]) -> Callable[[dict], int]:
    """Return the formula of all members for that of one."""

    def count_all(a: dict) -> int:
        group = Group(tuple(a["present"]), tuple(a["backwards"]))
        wanted = group.unpack(a["wanted"] if "wanted" in a else [False] * len(a["tensors"]))
        members = zip(group.unpack(a["tensors"]), wanted, strict=True)
        return sum(count(a | shapes._asdict() | {"wanted": [bool(w) for w in wants]}) for shapes, wants in members)

    return count_all


_COUNTS = {
    "scan": _scan,
    "scan_backward": _scan_backward,
    "scan_members": _of_each(_scan),
    "scan_members_backward": _of_each(_scan_backward),
}
