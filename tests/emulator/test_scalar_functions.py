"""Approximate functions: within the error that the PTX ISA documents, exact at special values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dsv4.emulator.oracle.floats import approximate
from dsv4.emulator.oracle.formats import FORMATS, encode
from tests.emulator.scalar_machine import ScalarMachine

SPECIAL = [
    0,
    0x80000000,
    0x3F800000,
    0xBF800000,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    1,
    0x80000001,
    0x007FFFFF,
    0x00800000,
]
SPECIAL += [0x7F7FFFFF, 0xFF7FFFFF, 0x42FE0000, 0xC2FC0000, 0xC3150000, 0x43000000, 0x40000000]
# largest error: absolute or relative, of which one must hold
ERROR = {"ex2": (0, 2**-22), "lg2": (2**-22, 2**-22), "rcp": (0, 2**-23), "rsqrt": (0, 2**-22.4), "sqrt": (0, 2**-23)}
ERROR |= {"sin": (2**-20.5, 0), "cos": (2**-20.5, 0), "tanh": (0, 2**-11)}


def _inputs() -> np.ndarray:
    rng = np.random.default_rng(11)
    numbers = rng.normal(0, 20, 14).astype(np.float32).view(np.uint32)
    return np.concatenate([np.array(SPECIAL, np.uint32), numbers]).astype(np.uint64)


@pytest.mark.parametrize("function", sorted(ERROR))
@pytest.mark.parametrize("ftz", [False, True])
def test_f32_function(scalar_machine: ScalarMachine, function: str, ftz: bool) -> None:
    codes = _inputs()
    assert len(codes) == 32
    outcome = scalar_machine.run(
        f"{function}.approx{'.ftz' if ftz else ''}.f32 %d, %a;", {"%a": ("b32", codes)}, {"%d": "b32"}
    )
    absolute, relative = ERROR[function]
    for lane, code in enumerate(codes.tolist()):
        want = approximate(function, code, "f32", ftz)
        found = outcome.values["%d"].astype(np.uint32).view(np.float32)[lane]
        where = f"{function} of {code:#x}: {found} instead of {want}"
        if math.isnan(want):
            assert int(outcome.values["%d"][lane]) == 0x7FFFFFFF, where
        elif math.isinf(want) or abs(want) > float(FORMATS["f32"].largest):
            assert np.isinf(found) and np.signbit(found) == (want < 0), where
        elif ftz and abs(want) < 2.0**-126:
            assert found == 0, where
        else:
            assert abs(float(found) - want) <= max(absolute, relative * abs(want), 2.0**-149), where


@pytest.mark.parametrize("function", ["ex2", "tanh"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_function_is_nearest(scalar_machine: ScalarMachine, function: str, kind: str) -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([[0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0.5], rng.normal(0, 4, 24)])
    codes = [encode(v if v != v or np.isinf(v) or v == 0 else Fraction(float(v)), kind) for v in values.tolist()]
    packed = np.array([low | high << 16 for low, high in zip(codes, reversed(codes), strict=True)], np.uint64)
    form = f"ex2.approx.ftz.{kind}x2" if function == "ex2" and kind == "bf16" else f"{function}.approx.{kind}x2"
    outcome = scalar_machine.run(f"{form} %d, %a;", {"%a": ("b32", packed)}, {"%d": "b32"})
    for lane in range(32):
        for half, code in enumerate((codes[lane], codes[31 - lane])):
            want = approximate(function, code, kind, False)
            exact = want if math.isnan(want) or math.isinf(want) or want == 0 else Fraction(want)
            found = int(outcome.values["%d"][lane]) >> (16 * half) & 0xFFFF
            assert abs(found - encode(exact, kind)) <= (0 if math.isnan(want) or math.isinf(want) else 1)


def test_ex2_is_exact_at_integers(scalar_machine: ScalarMachine) -> None:
    numbers = np.arange(-16, 16, dtype=np.float32)
    outcome = scalar_machine.run(
        "ex2.approx.ftz.f32 %d, %a;", {"%a": ("b32", numbers.view(np.uint32).astype(np.uint64))}, {"%d": "b32"}
    )
    assert outcome.values["%d"].astype(np.uint32).view(np.float32).tolist() == [2.0**n for n in range(-16, 16)]
