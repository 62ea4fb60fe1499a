"""Codes of matrix elements in several styles, made from random bits with integer arithmetic only."""

from __future__ import annotations

import numpy as np

FORMATS = {"f16": (5, 10), "bf16": (8, 7), "tf32": (8, 23), "e4m3": (4, 3), "e5m2": (5, 2), "f32": (8, 23)}
"""Exponent and fraction bits; tf32 is kept in 32 bits, of which a tensor core looks at the upper 19."""
WIDTHS = {
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
    "e4m3": 8,
    "e5m2": 8,
    "f32": 32,
    "s8": 8,
    "u8": 8,
    "s4": 4,
    "u4": 4,
    "f64": 64,
}


def bias(name: str) -> int:
    return (1 << (FORMATS[name][0] - 1)) - 1


def packed_code(sign: np.ndarray, exponent: np.ndarray, fraction: np.ndarray, name: str) -> np.ndarray:
    """Codes of ±1.fraction · 2^exponent; what lies below the smallest normal number is a subnormal, cut."""
    exponent_bits, fraction_bits = FORMATS[name]
    field = exponent + bias(name)
    whole = (1 << fraction_bits) | fraction
    shift = np.clip(1 - field, 0, fraction_bits + 1)
    low = whole >> shift
    magnitude = np.where(field >= 1, (field << fraction_bits) | fraction, low)
    largest = (1 << (exponent_bits + fraction_bits)) - (2 if name == "e4m3" else (1 << fraction_bits) + 1)
    magnitude = np.minimum(magnitude, largest)
    return (sign << (exponent_bits + fraction_bits) | magnitude).astype(np.uint32)


def codes(rng: np.random.Generator, name: str, shape: tuple[int, ...], style: str, center: int = 0) -> np.ndarray:
    """uint32 codes of a format.

    Styles: ``normal`` (exponents as of a normal distribution around 2^center), ``spread<k>`` (exponents evenly within
    ±k of center), ``wide`` (any finite number), ``any`` (any bits), ``zero``, ``positive`` (normal without signs).
    Integers take any bits. Whatever the style, low bits of tf32 that a tensor core ignores are set.
    """
    if name in ("s8", "u8", "s4", "u4"):
        return rng.integers(0, 1 << WIDTHS[name], shape).astype(np.uint32)
    exponent_bits, fraction_bits = FORMATS[name]
    if style == "zero":
        return np.zeros(shape, np.uint32)
    if style in ("wide", "any"):
        found = rng.integers(0, 1 << (1 + exponent_bits + fraction_bits), shape, dtype=np.uint64).astype(np.uint32)
        if style == "any":
            return found
        top = np.uint32(((1 << exponent_bits) - 1) << fraction_bits)
        if name == "e4m3":
            return np.where(found & 0x7F == 0x7F, found ^ 1, found)
        return np.where(found & top == top, found ^ np.uint32(1 << (exponent_bits + fraction_bits - 1)), found)
    sign = rng.integers(0, 2, shape)
    if style == "positive":
        sign = np.zeros(shape, np.int64)
    fraction = rng.integers(0, 1 << fraction_bits, shape)
    if style.startswith("spread"):
        k = int(style[6:])
        exponent = center + rng.integers(-k, k + 1, shape)
    else:  # |x| of a normal distribution: half of the numbers one power of two lower, and so on
        exponent = center - np.minimum(rng.geometric(0.5, shape) - 1, 14)
    return packed_code(sign, exponent, fraction, name)


def power(exponent: int, name: str, sign: int = 0, fraction: int = 0) -> int:
    """The code of ±2^exponent, with fraction bits from the top of the format's fraction if given as eighths."""
    fraction_bits = FORMATS[name][1]
    part = (fraction << fraction_bits) >> 3
    return int(packed_code(np.array(sign), np.array(exponent), np.array(part), name))
