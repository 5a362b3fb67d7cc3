"""The scan and the reverse scan in torch operations, for any device and dtype, without an autograd graph.

`run_forward` and `run_backward` own everything between the inputs and the gradients, in chunks of steps that stay in
the processor's cache. `scan_forward` and `scan_backward` are the same computation with the arguments and results of
`launch.py`, which calls continue on where a kernel fails.
"""

from .backward import run_backward
from .forward import rebuild, run_forward
from .launched import pack_gates, scan_backward, scan_forward, unpack_gates
from .layout import entering_states
from .sums import Wanted

__all__ = [
    "Wanted", "entering_states", "pack_gates", "rebuild", "run_backward", "run_forward", "scan_backward",
    "scan_forward", "unpack_gates",
]  # fmt: skip
