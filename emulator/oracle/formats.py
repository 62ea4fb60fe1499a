"""Floating-point formats as exact numbers: decode to a Fraction, round a Fraction once."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

INF = float("inf")
NAN = float("nan")
Value = Fraction | float  # a finite number, or one of inf, -inf, nan, or -0.0 (the float)


@dataclass(frozen=True)
class Format:
    """Exponent and fraction bits; `ieee` formats have infinities; `nan` is the canonical NaN or None."""

    exponent_bits: int
    fraction_bits: int
    ieee: bool
    nan: int | None
    largest: Fraction

    @property
    def bits(self) -> int:
        """Width with the sign."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def bias(self) -> int:
        """Exponent bias."""
        return (1 << (self.exponent_bits - 1)) - 1


def _ieee(exponent_bits: int, fraction_bits: int, nan: int) -> Format:
    bias = (1 << (exponent_bits - 1)) - 1
    largest = (2 - Fraction(1, 1 << fraction_bits)) * Fraction(2) ** bias
    return Format(exponent_bits, fraction_bits, True, nan, largest)


FORMATS = {
    "f64": _ieee(11, 52, (1 << 63) - 1),
    "f32": _ieee(8, 23, 0x7FFFFFFF),
    "tf32": _ieee(8, 10, 0x7FFFFFFF),
    "f16": _ieee(5, 10, 0x7FFF),
    "bf16": _ieee(8, 7, 0x7FFF),
    "e5m2": _ieee(5, 2, 0x7F),
    "e4m3": Format(4, 3, False, 0x7F, Fraction(448)),
    "e2m3": Format(2, 3, False, None, Fraction(15, 2)),
    "e3m2": Format(3, 2, False, None, Fraction(28)),
    "e2m1": Format(2, 1, False, None, Fraction(6)),
}


def decode(code: int, name: str) -> Value:
    """The number that `code` stands for."""
    form = FORMATS[name]
    sign = -1 if code >> (form.bits - 1) & 1 else 1
    exponent = code >> form.fraction_bits & ((1 << form.exponent_bits) - 1)
    fraction = code & ((1 << form.fraction_bits) - 1)
    if form.ieee and exponent == (1 << form.exponent_bits) - 1:
        return NAN if fraction else sign * INF
    if not form.ieee and form.nan is not None and code & ((1 << (form.bits - 1)) - 1) == form.nan:
        return NAN
    if exponent == 0 and fraction == 0:
        return Fraction(0) if sign > 0 else -0.0
    mantissa = fraction + ((1 << form.fraction_bits) if exponent else 0)
    return sign * mantissa * Fraction(2) ** (max(exponent, 1) - form.bias - form.fraction_bits)


def is_nan(value: Value) -> bool:
    """True for a NaN."""
    return isinstance(value, float) and value != value


def is_negative(value: Value) -> bool:
    """The sign bit."""
    return str(value).startswith("-")


def round_fraction(value: Fraction, mode: str) -> int:
    """`value` to an integer: rn, rz, rm, rp, or rna (ties away from zero)."""
    whole = value.numerator // value.denominator
    rest = value - whole
    if mode == "rm" or rest == 0:
        return whole
    if mode == "rp":
        return whole + 1
    if mode == "rz":
        return whole + (value < 0)
    if rest == Fraction(1, 2):
        return whole + (whole % 2 if mode == "rn" else value > 0)
    return whole + (rest > Fraction(1, 2))


def encode(value: Value, name: str, mode: str = "rn", *, finite: bool = False) -> int:
    """The code of `value` rounded once. `finite`: .satfinite, beyond the largest number gives the largest."""
    form = FORMATS[name]
    shift = 13 if name == "tf32" else 0  # a tf32 number lies in the upper bits of a 32-bit register
    sign_bit = 1 << (form.bits - 1)
    largest = (1 << (form.bits - 1)) - 1
    if form.ieee:
        largest -= 1 << form.fraction_bits
    elif form.nan is not None:
        largest -= 1
    infinity = ((1 << form.exponent_bits) - 1) << form.fraction_bits
    if is_nan(value):
        return form.nan if form.nan is not None else largest
    sign = sign_bit if is_negative(value) else 0
    if isinstance(value, float):
        if value == 0:
            return sign << shift
        return (sign | (largest if finite or not form.ieee else infinity)) << shift
    if value == 0:
        return 0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    exponent = max(exponent, 1 - form.bias)
    step = Fraction(2) ** (exponent - form.fraction_bits)
    rounded = abs(round_fraction(value / step, mode)) * step
    if rounded > form.largest:
        inwards = mode == "rz" or (mode == "rm" and not sign) or (mode == "rp" and bool(sign))
        return (sign | (largest if finite or inwards or not form.ieee else infinity)) << shift
    if rounded == 0:
        return sign << shift
    scaled = rounded / (Fraction(2) ** (1 - form.bias - form.fraction_bits))  # in units of the smallest subnormal
    units = scaled.numerator
    assert scaled.denominator == 1
    top = units.bit_length() - 1
    if top < form.fraction_bits:
        return (sign | units) << shift
    stored = top - form.fraction_bits + 1
    fraction = (units >> (top - form.fraction_bits)) & ((1 << form.fraction_bits) - 1)
    return (sign | stored << form.fraction_bits | fraction) << shift


def flush(value: Value, name: str = "f32") -> Value:
    """.ftz: subnormal numbers become zeros of the same sign."""
    if isinstance(value, Fraction) and value != 0 and abs(value) < Fraction(2) ** (1 - FORMATS[name].bias):
        return -0.0 if value < 0 else Fraction(0)
    return value
