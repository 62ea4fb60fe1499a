"""Sets of matrices A [m, k], B [k, n], C [m, n] as codes, that show how products are summed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.agreement.values import FORMATS, codes, power


@dataclass(frozen=True)
class Operands:
    """One product: codes of its operands. ``label`` says what it shows."""

    label: str
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray


STYLES = (  # label, A and B, C, centre of C's exponents
    ("normal, C 0", "normal", "zero", 0),
    ("normal, C normal", "normal", "normal", 2),
    ("normal, C large", "normal", "normal", 9),
    ("normal, C small", "normal", "normal", -9),
    ("positive, C 0", "positive", "zero", 0),
    ("spread 3, C spread", "spread3", "spread8", 2),
    ("spread 6, C spread", "spread6", "spread16", 2),
    ("spread 12, C spread", "spread12", "spread24", 0),
    ("wide, C 0", "wide", "zero", 0),
    ("wide, C wide", "wide", "wide", 0),
    ("any bits", "any", "any", 0),
)


def random_sets(seed: int, types: tuple[str, str, str], m: int, n: int, k: int) -> list[Operands]:
    """Products of random numbers in every style, and pairs that cancel but for their low bits. Types of D, A, B."""
    rng = np.random.default_rng(seed)
    d_type, a_type, b_type = types
    found = []
    for label, style, c_style, center in STYLES:
        a, b = codes(rng, a_type, (m, k), style), codes(rng, b_type, (k, n), style)
        found.append(Operands(label, a, b, codes(rng, d_type, (m, n), c_style, center)))
    for c_style in ("zero", "normal"):
        a, b = codes(rng, a_type, (m, k), "spread2"), codes(rng, b_type, (k, n), "spread2")
        half = k // 2
        order = rng.permutation(k)
        a, b = a[:, order], b[order]
        a[:, order[half:]] = a[:, order[:half]] ^ np.uint32(1 << (FORMATS[a_type][0] + FORMATS[a_type][1]))
        b[order[half:]] = b[order[:half]] ^ rng.integers(0, 2, (half, n)).astype(np.uint32)
        found.append(Operands(f"cancelling, C {c_style}", a, b, codes(rng, d_type, (m, n), c_style, -6)))
    return found


def integer_sets(seed: int, types: tuple[str, str, str], m: int, n: int, k: int) -> list[Operands]:
    """Random integers with C 0, C of any bits (sums wrap), and C at the limits."""
    rng = np.random.default_rng(seed)
    found = []
    for label in ("C 0", "C any", "C at the limits"):
        a, b = codes(rng, types[1], (m, k), "any"), codes(rng, types[2], (k, n), "any")
        c = rng.integers(0, 2**32, (m, n), dtype=np.uint64).astype(np.uint32)
        if label == "C 0":
            c[:] = 0
        elif label == "C at the limits":
            c = np.where(c & 1, 0x7FFFFF00 | (c & 0xFF), 0x80000000 | (c & 0xFF)).astype(np.uint32)
        found.append(Operands(label, a, b, c))
    return found


REACHES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "f16": ((14, 0, 7, 0),),
    "bf16": ((14, 0, 7, 0),),
    "tf32": ((14, 0, 7, 0),),
    "e4m3": ((8, 4, 3, 3), (8, 8, -3, 3)),
    "e5m2": ((14, 0, 7, 0), (14, 8, 4, 0)),
}
"""By the type of A, one or two of: exponents of the large term's factors, of the small term's in column 0."""
COLUMNS = 24


def threshold_sets(types: tuple[str, str, str], m: int, k: int, columns: int = COLUMNS) -> list[Operands]:
    """The sets of :func:`_threshold_sets` for each reach of the type of A."""
    return [each for reach in REACHES[types[1]] for each in _threshold_sets(types, m, k, columns, reach)]


def _threshold_sets(
    types: tuple[str, str, str], m: int, k: int, columns: int, reach: tuple[int, int, int, int]
) -> list[Operands]:
    """2^e − 2^e + a small term: which positions share one alignment, and how small a term survives.

    One set for each position j of the small term, whose exponent falls by one a column. Row r puts +2^e at one place
    and −2^e at another: positions of K, or C. The last rows have no second large term, so that the small term shows in
    the rounding of the result.
    """
    d_type, a_type, b_type = types
    large, large_b, small, start = reach
    found = []
    one = power(large_b, b_type)
    for j in range(k):
        a, b = np.zeros((m, k), np.uint32), np.full((k, columns), one, np.uint32)
        c = np.zeros((m, columns), np.uint32)
        others = [i for i in range(k) if i != j]
        pairs = [(others[0], i) for i in others[1:]] + [(i, others[0]) for i in others[1:]]
        pairs = pairs[: m - 8]
        for row in range(m):
            a[row, j] = power(small, a_type, sign=row & 1, fraction=(0, 3, 6, 7)[row >> 1 & 3])
            if row < len(pairs):
                a[row, pairs[row][0]], a[row, pairs[row][1]] = power(large, a_type), power(large, a_type, 1)
            elif row >= m - 4:  # C is the large term
                c[row] = power(large + large_b, d_type, sign=row >> 1 & 1)
                a[row, others[row % len(others)]] = power(large, a_type, sign=1 - (row >> 1 & 1))
            else:
                a[row, others[row % len(others)]] = power(large, a_type, sign=row >> 1 & 1)
        for column in range(columns):
            b[j, column] = power(start - column, b_type)
        found.append(Operands(f"small term at {j}", a, b, c))
    return found
