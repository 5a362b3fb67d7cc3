"""Runs the PTX that Triton compiles for an NVIDIA GPU on a CPU, and checks every access to memory on the way.

    ptx         text of a kernel      ->  instructions, labels, registers, parameters
    arithmetic  one instruction       ->  a step: a function of a warp, on 32 lanes at once
    exchanges   the same for instructions in which lanes hand each other values: shuffles, matrix products
    transfers   the same for instructions that load, store and synchronise
    warpgroups  the same for the asynchronous products of four warps
    memory      buffers with bounds, shared memory, what a byte holds
    races       which accesses are ordered: happens-before between warps and programs
    machine     warps, programs and a grid, in a random order
    driver      a Triton driver whose launch runs the machine on CPU tensors

It knows the instructions that the kernels of this package are compiled to; any other raises `UnsupportedInstruction`.
"""
