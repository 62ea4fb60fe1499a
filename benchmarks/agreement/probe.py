"""One probe: a small kernel, and how its answer is judged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from dsv4.emulator.text_kernel import Kernel

TARGET = "sm_90a"
OUT = "out"
"""The array that a probe's kernel writes and that is compared."""


@dataclass(frozen=True)
class Probe:
    """A kernel whose array ``out`` is compared.

    ``labels`` names the first axis of ``out`` (one label for all of it otherwise). ``kind`` says what an element is:
    ``bits`` (compared only for equality), ``f32``, ``f16``, ``bf16``, ``f64``: distances are counted in steps of the
    format too. ``approximate`` marks instructions for which the PTX ISA promises an error bound and no bits.
    ``open_rows`` are rows that the ISA leaves to the chip: noted, and not counted as different.
    ``may_fail`` marks what the chip may refuse: the kernel writes 1 to ``out``'s first word at its end, and the
    emulator must have a finding exactly where the chip does not get there.
    """

    family: str
    name: str
    kernel: Kernel
    labels: tuple[str, ...] = ()
    kind: str = "bits"
    approximate: bool = False
    open_rows: tuple[str, ...] = ()
    may_fail: bool = False

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"

    @property
    def out(self) -> np.ndarray:
        return self.kernel.arrays[OUT]

    def input_hash(self) -> str:
        """A hash of all that the kernel is given: text, launch, arrays, tensor maps without their addresses."""
        kernel, digest = self.kernel, hashlib.sha256()
        digest.update(kernel.text().encode())
        digest.update(repr((kernel.grid, kernel.block, kernel.cluster, kernel.smem_bytes)).encode())
        for name, array in kernel.arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        order = [array.ctypes.data for array in kernel.arrays.values()]
        for block in kernel.parameters(lambda address: 1024 * order.index(address) if address in order else 0):
            digest.update(block)
        return digest.hexdigest()[:16]
