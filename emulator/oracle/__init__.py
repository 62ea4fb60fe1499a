"""What each scalar PTX opcode gives, lane by lane, in plain Python over NumPy arrays: the oracle of the opcode tests.

Written from the PTX ISA's text and independently of the C handlers: integers are Python integers, floating-point
results are exact fractions that are rounded once. It is slow, and only meant for tests.
"""

from dsv4.emulator.oracle.evaluate import Result, evaluate

__all__ = ["Result", "evaluate"]
