"""ldmatrix and stmatrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.probe import Probe
from benchmarks.agreement.warps import warp_kernel

ROW_STRIDE = 48  # bytes
SETS = 2


def _rows(count: int, seed: int) -> tuple[str, np.ndarray]:
    """Statements that give each lane the address of a row, rows in a shuffled order."""
    order = np.random.default_rng(seed).permutation(32)
    text = "mov.u32 %r1, %laneid; mov.u32 %r0, %smem;\n"
    for lane, row in enumerate(order.tolist()):
        text += f"setp.eq.u32 %p0, %r1, {lane}; @%p0 add.u32 %r0, %smem, {ROW_STRIDE * row};\n"
    return text, order


def probes() -> Iterator[Probe]:
    rng = np.random.default_rng(91)
    shared = rng.integers(0, 256, (SETS, 32 * ROW_STRIDE), dtype=np.uint8)
    for count in (1, 2, 4):
        for transposed in ("", ".trans"):
            setup, _ = _rows(count, count)
            form = f"sync.aligned.m8n8.x{count}{transposed}.shared.b16"
            names = ", ".join(f"o{n}" for n in range(count))
            body = f"{setup} ldmatrix.{form} {{{names}}}, [%r0+16];\n"
            yield Probe("fragments", f"ldmatrix.x{count}{transposed}", warp_kernel(body, outputs=count, shared=shared))
            inputs = rng.integers(0, 2**32, (SETS, count, 32), dtype=np.uint64).astype(np.uint32)
            names = ", ".join(f"i{n}" for n in range(count))
            body = f"{setup} stmatrix.{form} [%r0+32], {{{names}}};\n"
            kernel = warp_kernel(body, inputs=inputs, shared=shared, dump_shared=True)
            yield Probe("fragments", f"stmatrix.x{count}{transposed}", kernel)
