"""What differs between the releases of torch that the tests run with."""

from __future__ import annotations

import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Before, a call with gradients goes the whole way each time, see tritongru/repeats.py.
REPEATS_GRADIENTS = TORCH >= (2, 8)
# Before, `torch.compile` drops the message of an error in what it compiles.
COMPILER_TELLS = TORCH >= (2, 9)
# Before, `fully_shard` on a CPU does not work (2.6), or adds gradients where it is to average them.
SHARDS_ON_A_CPU = TORCH >= (2, 9)
