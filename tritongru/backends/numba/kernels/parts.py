"""What each thread of a call does, in machine code alone: no line of Python runs in another thread, or may be
interrupted in this one by a signal, while parts of the call are still to be done.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..compile import Kernel
from .meeting import observe, publish

# A task: how often a thread has asked for a part, and how often one is done with the answer; how many parts there are,
# the kernel's address, whether one thread took all parts, and the address of each plan.
ASKED, ANSWERED, COUNT, KERNEL, ALONE, PLANS = range(6)


@intrinsic
def take(typing, start, index):
    """Return an int64 and add one to it, at once for all threads."""

    def make(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(start, types.int64), make


@intrinsic
def call(typing, function, plan, like):
    """Call a kernel by the address of its code and that of its plan."""

    def make(context, builder, signature, arguments):
        number, place = context.get_value_type(signature.args[2]), ir.IntType(64).as_pointer()
        code = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), [place, number]).as_pointer())
        builder.call(code, [builder.inttoptr(arguments[1], place), ir.Constant(number, 0.0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like), make


def run_task(task, like):
    """Run parts of a task until none is left; a part is begun after those before it."""
    count, taken = observe(task, COUNT), 0
    part = take(task, ASKED)
    while part < observe(task, COUNT):
        call(task[KERNEL], task[PLANS + part], like)
        taken += 1
        if taken == count:
            publish(task, ALONE, 1)
        take(task, ANSWERED)
        part = take(task, ASKED)
    take(task, ANSWERED)


run_parts_of_task = Kernel(run_task)
