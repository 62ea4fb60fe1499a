"""Kernels that somebody else wrote, run in the emulator: what it says of kernels that are known to be right.

Dao-AILab's quack, unmodified, through its public functions: ``python -m benchmarks.third_party --write``.
"""
