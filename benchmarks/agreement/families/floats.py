"""Floating-point arithmetic that the PTX ISA defines to the bit: f32, f64, f16, bf16 and packed pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.agreement.forms import form_probes
from benchmarks.agreement.probe import Probe
from benchmarks.agreement.tables import mixed_f32, scaled

COUNT = 2048
COMPARISONS = "{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}"
SINGLE = {
    "{add,sub,mul}{.rn,.rz,.rm,.rp}{,.ftz}{,.sat}.f32": "32 32 32",
    "fma.{rn,rz,rm,rp}{,.ftz}{,.sat}.f32": "32 32 32 32",
    "div.{rn,rz,rm,rp}{,.ftz}.f32": "32 32 32",
    "{rcp,sqrt}.{rn,rz,rm,rp}{,.ftz}.f32": "32 32",
    "{min,max}{,.ftz}{,.NaN}{,.xorsign.abs}.f32": "32 32 32",
    "{abs,neg}{,.ftz}.f32": "32 32",
    "copysign.f32": "32 32 32",
    "testp.{finite,infinite,number,notanumber,normal,subnormal}.f32": "p 32",
    f"setp.{COMPARISONS}{{,.ftz}}.f32": "p 32 32",
    "set.{lt,neu}.{u32,f32}.f32": "32 32 32",
}
DOUBLE = {
    "{add,sub,mul}.{rn,rz,rm,rp}.f64": "64 64 64",
    "fma.{rn,rz,rm,rp}.f64": "64 64 64 64",
    "div.{rn,rz,rm,rp}.f64": "64 64 64",
    "{rcp,sqrt}.{rn,rz}.f64": "64 64",
    "{min,max}.f64": "64 64 64",
    "{abs,neg}.f64": "64 64",
    f"setp.{COMPARISONS}.f64": "p 64 64",
}
HALF = {
    "{add,sub,mul}.rn{,.ftz}{,.sat}.f16": "16 16 16",
    "fma.rn{,.ftz}{,.sat,.relu}.f16": "16 16 16 16",
    "{min,max}{,.ftz}{,.NaN}{,.xorsign.abs}.f16": "16 16 16",
    "{abs,neg}.f16": "16 16",
    f"setp.{COMPARISONS}.f16": "p 16 16",
}
BF16 = {
    "{add,sub,mul}.rn.bf16": "16 16 16",
    "fma.rn{,.relu}.bf16": "16 16 16 16",
    "{min,max}{,.NaN}{,.xorsign.abs}.bf16": "16 16 16",
    "{abs,neg}.bf16": "16 16",
    f"setp.{COMPARISONS}.bf16": "p 16 16",
}
HALF_PAIRS = {
    "{add,sub,mul}.rn{,.ftz}{,.sat}.f16x2": "32 32 32",
    "fma.rn{,.ftz}{,.sat,.relu}.f16x2": "32 32 32 32",
    "{min,max}{,.ftz}{,.NaN}.f16x2": "32 32 32",
    "{abs,neg}.f16x2": "32 32",
}
BF16_PAIRS = {
    "{add,sub,mul}.rn.bf16x2": "32 32 32",
    "fma.rn{,.relu}.bf16x2": "32 32 32 32",
    "{min,max}{,.NaN}.bf16x2": "32 32 32",
    "{abs,neg}.bf16x2": "32 32",
}


def halves(rng: np.random.Generator, count: int, exponent_bits: int) -> np.ndarray:
    """16-bit floating-point codes: any bits, near exponents, special values."""
    fraction_bits = 15 - exponent_bits
    found = rng.integers(0, 1 << 16, count).astype(np.uint16)
    middle = (1 << (exponent_bits - 1)) - 1
    near = middle + rng.integers(-8, 9, count)
    moderate = rng.integers(0, 2, count) << 15 | near << fraction_bits | rng.integers(0, 1 << fraction_bits, count)
    found = np.where(rng.integers(0, 3, count) > 0, moderate, found).astype(np.uint16)
    top = ((1 << exponent_bits) - 1) << fraction_bits
    special = np.array([0, 1, (1 << fraction_bits) - 1, 1 << fraction_bits, top - 1, top, top + 1, 0x7FFF], np.uint16)
    special = np.concatenate([special, special | 0x8000])
    found[: 8 * len(special)] = np.tile(special, 8)
    return rng.permutation(found)


def doubles(rng: np.random.Generator, count: int) -> np.ndarray:
    found = scaled(rng, count, -40, 41).view(np.uint64)
    bits = rng.integers(0, 2**64, count, dtype=np.uint64)
    found = np.where(rng.integers(0, 3, count) > 0, found, bits)
    special = np.array(
        [0, 1, 1 << 52, 0x3FF << 52, 0x7FF << 52, (0x7FF << 52) + 1, 2**63 - 1, (0x7FF << 52) - 1], np.uint64
    )
    special = np.concatenate([special, special | np.uint64(1 << 63)])
    found[: 8 * len(special)] = np.tile(special, 8)
    return rng.permutation(found)


def paired(codes: np.ndarray) -> np.ndarray:
    return codes[0::2].astype(np.uint32) | codes[1::2].astype(np.uint32) << 16


SPECIAL_64 = np.array(
    [0, 1, 0x000FFFFFFFFFFFFF, 1 << 52, 0x3FF << 52, 0x7FEFFFFFFFFFFFFF, 0x7FF << 52, 0x7FF0000000000001, 0x7FFC << 48],
    np.uint64,
)
SPECIAL_32 = np.array(
    [0, 1, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FE00000], np.uint32
)


def crossed(special: np.ndarray, operands: int, count: int) -> np.ndarray:
    """Combinations of special values and their negatives, one operand after the other, ``count`` of each."""
    top = special.dtype.type(1 << (8 * special.itemsize - 1))
    both = np.concatenate([special, special | top])
    index = np.arange(count) * (1 if operands < 3 else 7)
    parts = [both[index // len(both) ** n % len(both)] for n in range(operands)]
    return np.concatenate(parts)


def special_probes(family: str, forms: Mapping[str, str], special: np.ndarray, suffix: str) -> Iterator[Probe]:
    """Every pair (and many a triple) of zeros, subnormal numbers, infinities and NaN."""
    operands = {8 * special.itemsize: crossed(special, 3, 384)}
    yield from form_probes(family, forms, operands, count=384, suffix=suffix)


def probes() -> Iterator[Probe]:
    rng = np.random.default_rng(21)
    single = np.concatenate([mixed_f32(rng, COUNT) for _ in range(4)])
    close = single.copy()  # the second operand is often near the first: cancellation
    close[COUNT : 2 * COUNT : 2] = single[:COUNT:2] ^ rng.integers(0, 256, COUNT // 2).astype(np.uint32) ^ 0x80000000
    yield from form_probes("floats", SINGLE, {32: close}, count=COUNT, suffix="_f32")
    yield from form_probes("floats", DOUBLE, {64: doubles(rng, 4 * COUNT)}, count=COUNT, suffix="_f64")
    for name, exponent_bits, single_forms, pair_forms in (("f16", 5, HALF, HALF_PAIRS), ("bf16", 8, BF16, BF16_PAIRS)):
        codes = halves(rng, 8 * COUNT, exponent_bits)
        yield from form_probes("floats", single_forms, {16: codes}, count=COUNT, suffix=f"_{name}")
        yield from form_probes("floats", pair_forms, {32: paired(codes)}, count=COUNT // 2, suffix=f"_{name}x2")
    yield from special_probes("floats", SINGLE, SPECIAL_32, "_f32_special")
    yield from special_probes("floats", DOUBLE, SPECIAL_64, "_f64_special")
    for name, exponent_bits, single_forms in (("f16", 5, HALF), ("bf16", 8, BF16)):
        fraction_bits = 15 - exponent_bits
        top = ((1 << exponent_bits) - 1) << fraction_bits
        one = ((1 << (exponent_bits - 1)) - 1) << fraction_bits
        least = 1 << fraction_bits
        special = np.array([0, 1, least - 1, least, one, top - 1, top, top + 1, 0x7FF0], np.uint16)
        yield from special_probes("floats", single_forms, special, f"_{name}_special")
