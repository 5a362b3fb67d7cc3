"""What mapping over the operators means: one call for each member, and the results stacked.

`torch.func.vmap` of a layer comes another way (`transforms.py`). Here come the maps that autograd makes itself over the
reverse scan, for many gradients at once, and those over operators in an exported program.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def register_loop(operator: torch._ops.OpOverload, library: torch.library.Library) -> None:
    """Give an operator the rule of `torch.func.vmap` that calls it once for each member."""

    def rule(info, in_dims, *arguments):
        runs = [operator(*_of_member(arguments, in_dims, member)) for member in range(info.batch_size)]
        stacked = [torch.stack(values) for values in zip(*runs, strict=True)]
        # As its schema says, one list or several tensors.
        whole = stacked if isinstance(runs[0], list) else tuple(stacked)
        return whole, tree_map(lambda _: 0, whole)

    torch.library.register_vmap(operator, rule, lib=library)


def _of_member(value: Any, dim: Any, member: int) -> Any:
    if isinstance(value, Tensor):
        return value if dim is None else value.select(dim, member)
    if isinstance(value, (tuple, list)) and isinstance(dim, (tuple, list)):
        return type(value)(_of_member(*pair, member) for pair in zip(value, dim, strict=True))
    return value
