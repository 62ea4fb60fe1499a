"""mma.sync of every type that sm_90a has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.families.floats import doubles
from benchmarks.agreement.probe import Probe
from benchmarks.agreement.products import Operands, integer_sets, random_sets, threshold_sets
from benchmarks.agreement.values import WIDTHS
from benchmarks.agreement.warps import warp_kernel
from dsv4.emulator.oracle import matrix

FLOATS = (  # shape, types of D (and C), A, B
    ((16, 8, 8), ("f32", "f16", "f16")),
    ((16, 8, 16), ("f32", "f16", "f16")),
    ((16, 8, 16), ("f16", "f16", "f16")),
    ((16, 8, 8), ("f16", "f16", "f16")),
    ((16, 8, 8), ("f32", "bf16", "bf16")),
    ((16, 8, 16), ("f32", "bf16", "bf16")),
    ((16, 8, 4), ("f32", "tf32", "tf32")),
    ((16, 8, 8), ("f32", "tf32", "tf32")),
    ((16, 8, 32), ("f32", "e4m3", "e4m3")),
    ((16, 8, 32), ("f32", "e4m3", "e5m2")),
    ((16, 8, 32), ("f32", "e5m2", "e5m2")),
    ((16, 8, 16), ("f32", "e4m3", "e4m3")),
    ((16, 8, 16), ("f32", "e5m2", "e4m3")),
    ((16, 8, 32), ("f16", "e4m3", "e4m3")),
    ((16, 8, 16), ("f16", "e5m2", "e5m2")),
)
INTEGERS = (  # shape, types of A and B, .satfinite
    ((8, 8, 16), ("s8", "s8"), False),
    ((8, 8, 16), ("u8", "s8"), True),
    ((16, 8, 16), ("s8", "u8"), False),
    ((16, 8, 32), ("s8", "s8"), False),
    ((16, 8, 32), ("u8", "u8"), True),
    ((8, 8, 32), ("s4", "u4"), False),
    ((16, 8, 32), ("u4", "s4"), True),
    ((16, 8, 64), ("s4", "s4"), False),
)
COPIES = 3
"""Products of a random set are this many: m × n is small."""


def _registers(codes: np.ndarray, places: tuple[np.ndarray, np.ndarray], bits: int) -> np.ndarray:
    return matrix.pack(codes[places], bits)


def _probe(
    name: str, sets: list[Operands], shape: tuple[int, int, int], types: tuple[str, str, str], modifier: str
) -> Probe:
    m, n, k = shape
    d_type, a_type, b_type = types
    a_bits, b_bits, d_bits = WIDTHS[a_type], WIDTHS[b_type], 16 if d_type == "f16" else 32
    a_at, b_at, d_at = matrix.a_fragment(k, a_bits, m), matrix.b_fragment(k, b_bits), matrix.d_fragment(n, m)
    inputs = np.stack(
        [
            np.concatenate(
                [_registers(s.a, a_at, a_bits), _registers(s.b, b_at, b_bits), _registers(s.c, d_at, d_bits)]
            )
            for s in sets
        ]
    )
    counts = (m * k * a_bits // 1024, k * n * b_bits // 1024, m * n * d_bits // 1024)
    first = np.cumsum((0, *counts))
    a, b, c = (", ".join(f"i{first[x] + y}" for y in range(counts[x])) for x in range(3))
    d = ", ".join(f"o{y}" for y in range(counts[2]))
    c_type = d_type
    opcode = f"mma.sync.aligned.m{m}n{n}k{k}.row.col{modifier}.{d_type}.{a_type}.{b_type}.{c_type}"
    kernel = warp_kernel(f"{opcode} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n", outputs=counts[2], inputs=inputs)
    kind = "f32" if d_type == "f32" else "bits"
    return Probe("warp_matrices", name, kernel, tuple(s.label for s in sets), kind)


def _doubles() -> Iterator[Probe]:
    """f64: registers of 64 bits, as pairs."""
    rng = np.random.default_rng(102)
    for m, k in ((8, 4), (16, 4), (16, 8), (16, 16)):
        counts = (m * k // 32, k * 8 // 32, m * 8 // 32)
        total = sum(counts)
        sets = 4
        values = doubles(rng, 4096)[: sets * total * 32].reshape(sets, total, 32)
        pairs = np.stack([values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)], axis=2).reshape(sets, 2 * total, 32)
        body = f".reg .b64 w<{total}>, v<{counts[2]}>;\n"
        body += "".join(f"mov.b64 w{n}, {{i{2 * n}, i{2 * n + 1}}};\n" for n in range(total))
        first = np.cumsum((0, *counts))
        a, b, c = (", ".join(f"w{first[x] + y}" for y in range(counts[x])) for x in range(3))
        d = ", ".join(f"v{y}" for y in range(counts[2]))
        body += f"mma.sync.aligned.m{m}n8k{k}.row.col.f64.f64.f64.f64 {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n"
        body += "".join(f"mov.b64 {{o{2 * n}, o{2 * n + 1}}}, v{n};\n" for n in range(counts[2]))
        kernel = warp_kernel(body, outputs=2 * counts[2], inputs=pairs.astype(np.uint32))
        yield Probe("warp_matrices", f"m{m}n8k{k}.f64", kernel)


def probes() -> Iterator[Probe]:
    for number, ((m, n, k), types) in enumerate(FLOATS):
        sets = [s for copy in range(COPIES) for s in random_sets(100 + number + 50 * copy, types, m, n, k)]
        name = f"m{m}n{n}k{k}.{'.'.join(types)}"
        yield _probe(name, sets, (m, n, k), types, "")
        if types[0] == "f32" and m == 16:
            narrow = [
                Operands(
                    f"{s.label}, rows from {row}, columns from {column}",
                    s.a[row : row + m],
                    s.b[:, column : column + n],
                    s.c[row : row + m, column : column + n],
                )
                for s in threshold_sets(types, 64, k)
                for row in (0, 48)
                for column in (8, 16)
            ]
            yield _probe(f"{name}.thresholds", narrow, (m, n, k), types, "")
    for number, ((m, n, k), (a, b), saturates) in enumerate(INTEGERS):
        sets = integer_sets(200 + number, ("s32", a, b), m, n, k)
        modifier = ".satfinite" if saturates else ""
        yield _probe(f"m{m}n{n}k{k}.{a}.{b}{modifier}", sets, (m, n, k), ("s32", a, b), modifier)
    yield from _doubles()
