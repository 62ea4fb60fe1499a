"""Approximations: ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh, div. The PTX ISA only bounds their errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.probe import Probe
from benchmarks.agreement.tables import SPECIAL_F32, f32_bits, mixed_f32, table

COUNT = 16384
ALL_CODES = 1 << 16


def _samples(rng: np.random.Generator, low: float, high: float, *, exponents: bool = False) -> np.ndarray:
    """Bits of f32 in [low, high), evenly spread, or by their exponents with both signs; special values first."""
    if exponents:
        fraction = (1.0 + rng.random(COUNT)) * rng.choice([-1.0, 1.0], COUNT)
        values = np.ldexp(fraction, rng.integers(int(low), int(high), COUNT).astype(np.int32))
    else:
        values = low + (high - low) * rng.random(COUNT)
    bits = f32_bits(values)
    special = np.concatenate([SPECIAL_F32, SPECIAL_F32 | 0x80000000])
    bits[: len(special)] = special
    return bits


def _single(name: str, opcodes: list[str], operand: np.ndarray) -> Probe:
    rows = [(opcode, f"{opcode} d, x;") for opcode in opcodes]
    return table("functions", name, rows, {"x": operand}, kind="f32", approximate=True)


def probes() -> Iterator[Probe]:
    rng = np.random.default_rng(41)
    yield _single("ex2", ["ex2.approx.f32", "ex2.approx.ftz.f32"], _samples(rng, -160, 140))
    yield _single("ex2_near_0", ["ex2.approx.ftz.f32"], _samples(rng, -30, 0, exponents=True))
    positive = _samples(rng, -140, 128, exponents=True) & 0x7FFFFFFF
    yield _single("lg2", ["lg2.approx.f32", "lg2.approx.ftz.f32"], positive)
    yield _single("lg2_near_1", ["lg2.approx.f32"], _samples(rng, 0.5, 2.0))
    for name in ("rcp", "rsqrt", "sqrt"):
        operand = _samples(rng, -148, 128, exponents=True)
        operand = operand if name == "rcp" else np.where(rng.integers(0, 16, COUNT) > 0, operand & 0x7FFFFFFF, operand)
        yield _single(name, [f"{name}.approx.f32", f"{name}.approx.ftz.f32"], operand.astype(np.uint32))
    for name in ("sin", "cos"):
        yield _single(name, [f"{name}.approx.f32", f"{name}.approx.ftz.f32"], _samples(rng, -7, 7))
    yield _single("tanh", ["tanh.approx.f32"], _samples(rng, -20, 4, exponents=True))
    a, b = mixed_f32(rng, COUNT), mixed_f32(rng, COUNT)
    forms = ("div.approx.f32", "div.approx.ftz.f32", "div.full.f32", "div.full.ftz.f32")
    rows = [(f"{form} d, a, b", f"{form} d, a, b;") for form in forms]
    yield table("functions", "div", rows, {"a": a, "b": b}, kind="f32", approximate=True)
    codes = np.arange(ALL_CODES, dtype=np.uint16)
    for name in ("f16", "bf16"):
        ftz = ".ftz" if name == "bf16" else ""
        rows = [(opcode, f"{opcode} d, x;") for opcode in (f"ex2.approx{ftz}.{name}", f"tanh.approx.{name}")]
        yield table("functions", name, rows, {"x": codes}, out_bytes=2, kind=name, approximate=True)
