"""How far apart two arrays of bits are, as numbers of a format."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EXPONENTS = {"f16": (16, 10), "bf16": (16, 7), "f32": (32, 23), "f64": (64, 52)}
EXAMPLES = 4


@dataclass
class Difference:
    """``different`` of ``elements`` have other bits; steps are units in the last place of the format, NaN apart."""

    elements: int
    different: int = 0
    nan_only: int = 0
    max_steps: int | None = None
    within_one_step: int = 0
    max_relative: float | None = None
    max_absolute: float | None = None
    examples: list[str] = field(default_factory=list)


def ordered(bits: np.ndarray, kind: str) -> np.ndarray:
    """Integers that count the numbers of a format in order; both zeros are 0. As float64 for f64, else int64."""
    width = EXPONENTS[kind][0]
    wide = bits.astype(np.int64) if width < 64 else bits.view(np.int64).astype(np.int64)
    if width < 64:
        sign = wide >> (width - 1) & 1
        magnitude = wide & ((1 << (width - 1)) - 1)
        return np.where(sign == 1, -magnitude, magnitude)
    magnitude = wide & 0x7FFF_FFFF_FFFF_FFFF
    return np.where(wide < 0, -magnitude, magnitude)


def is_nan(bits: np.ndarray, kind: str) -> np.ndarray:
    width, fraction = EXPONENTS[kind]
    mask = bits.dtype.type((1 << (width - 1)) - 1)
    infinity = bits.dtype.type((1 << (width - 1)) - (1 << fraction))
    return (bits & mask) > infinity


def as_numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return bits.view({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]).astype(np.float64)


def _words(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.itemsize}").ravel()


def difference(found: np.ndarray, truth: np.ndarray, kind: str) -> Difference:
    """``found`` is held against ``truth``, arrays of the same shape; ``kind`` as in :class:`Probe`, or f16x2."""
    ours, theirs = _words(found), _words(truth)
    if kind == "f16x2":
        ours, theirs, kind = ours.view(np.uint16), theirs.view(np.uint16), "f16"
    result = Difference(len(ours))
    differs = ours != theirs
    result.different = int(differs.sum())
    result.within_one_step = len(ours) - result.different
    if not result.different:
        result.max_steps = 0 if kind != "bits" else None
        return result
    if kind == "bits":
        at = np.flatnonzero(differs)[:EXAMPLES]
        result.examples = [f"[{i}] {int(ours[i]):#x} instead of {int(theirs[i]):#x}" for i in at]
        return result
    nan_here, nan_there = is_nan(ours, kind), is_nan(theirs, kind)
    both = nan_here & nan_there
    result.nan_only = int((differs & both).sum())
    numbers = differs & ~nan_here & ~nan_there
    steps = np.abs(ordered(ours, kind) - ordered(theirs, kind))
    result.max_steps = int(steps[numbers].max()) if numbers.any() else 0
    if (nan_here != nan_there).any():
        result.max_steps = -1
    result.within_one_step = int((~differs | both | (numbers & (steps <= 1))).sum())
    with np.errstate(all="ignore"):
        a, b = as_numbers(ours, kind), as_numbers(theirs, kind)
        absolute = np.abs(a - b)
        relative = absolute / np.maximum(np.abs(b), np.finfo(np.float64).tiny)
    finite = numbers & np.isfinite(a) & np.isfinite(b)
    result.max_relative = float(relative[finite].max()) if finite.any() else 0.0
    result.max_absolute = float(absolute[finite].max()) if finite.any() else 0.0
    order = np.argsort(np.where(differs, np.where(nan_here != nan_there, 2**62, steps), -1))[::-1][:EXAMPLES]
    result.examples = [f"[{i}] {int(ours[i]):#x} instead of {int(theirs[i]):#x}" for i in order.tolist() if differs[i]]
    return result
