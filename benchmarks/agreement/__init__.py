"""The same objects and the same instructions on a real H100 and in the emulator, compared bit by bit.

    python -m benchmarks.agreement collect --out DIR [--cache DIR] [--expect FILE]   on the GPU machine
    python -m benchmarks.agreement compare DIR [--write FILE]                        here: runs the emulator
    python -m benchmarks.agreement answers DIR tests/emulator/data                   here: what tests hold to
    python -m benchmarks.agreement assemble                                          here: ptxas reads every probe

*Artifacts* are our compiled sm_90a kernels on their verification cases. *Probes* are small PTX kernels, each for a few
instructions. Inputs come from seeded generators on both machines and are compared by hash. To collect one needs torch,
NumPy, this repository's runtime and the driver: no compiler.
"""
