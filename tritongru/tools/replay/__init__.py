"""What a step of a scan costs in NVIDIA's machine code, without a GPU.

    sass       the assembler's text  ->  instructions with their control codes, the one path that a step takes, counts
    latencies  what the control codes do not say: latencies and rates, each with its source
    timeline   the path of all warps of a program, replayed in order  ->  cycles of a step, and when each is issued
    residents  the kernels with weights in registers: what a tiling compiles to, and the budgets it must keep

Cycles are estimates: compare kernels by them, and do not quote times. `bench` measures.
"""
