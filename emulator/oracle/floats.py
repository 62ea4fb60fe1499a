"""Exact floating-point arithmetic with the IEEE rules for zeros, infinities and NaN."""

from __future__ import annotations

import math
from fractions import Fraction

from dsv4.emulator.oracle.formats import INF, NAN, Value, decode, encode, flush, is_nan, is_negative


def _special(value: Value) -> bool:
    return isinstance(value, float) and value != 0


def negate(value: Value) -> Value:
    """-value, with the signs of zeros."""
    if isinstance(value, float):
        return Fraction(0) if value == 0 else -value
    return -0.0 if value == 0 else -value


def add(a: Value, b: Value, mode: str = "rn") -> Value:
    """a + b. An exact zero is -0 when both are -0 (or when rounding down)."""
    if is_nan(a) or is_nan(b):
        return NAN
    if _special(a) or _special(b):
        if _special(a) and _special(b) and a != b:
            return NAN
        return a if _special(a) else b
    total = Fraction(a) + Fraction(b)
    if total == 0:
        both = is_negative(a) and is_negative(b)
        mixed = is_negative(a) != is_negative(b)
        return -0.0 if both or (mixed and mode == "rm") else Fraction(0)
    return total


def multiply(a: Value, b: Value) -> Value:
    """a × b."""
    if is_nan(a) or is_nan(b):
        return NAN
    negative = is_negative(a) != is_negative(b)
    if _special(a) or _special(b):
        if a == 0 or b == 0:
            return NAN
        return -INF if negative else INF
    product = Fraction(a) * Fraction(b)
    if product == 0:
        return -0.0 if negative else Fraction(0)
    return product


def divide(a: Value, b: Value) -> Value:
    """a / b."""
    if is_nan(a) or is_nan(b):
        return NAN
    negative = is_negative(a) != is_negative(b)
    if _special(a):
        return NAN if _special(b) else (-INF if negative else INF)
    if _special(b) or (a == 0 and b != 0):
        return -0.0 if negative else Fraction(0)
    if b == 0:
        return NAN if a == 0 else (-INF if negative else INF)
    return Fraction(a) / Fraction(b)


DEFAULT_NAN64 = 0xFFF8 << 48


def quiet_nan(operation: str, codes: list[int]) -> int | None:
    """The NaN among f64 codes that the operation gives, made quiet; None where there is none. Measured on an H100."""
    order = codes if operation == "div" else [*codes[1:], codes[0]]
    return next((code | 1 << 51 for code in order if is_nan(decode(code, "f64"))), None)


def arithmetic(operation: str, sources: list[int], name: str, mode: str, ftz: bool, sat: bool, relu: bool) -> int:
    """add, sub, mul, fma or div of codes of one format."""
    values = [decode(code, name) for code in sources]
    if name == "f64" and (nan := quiet_nan(operation, sources)) is not None:
        return nan
    if ftz:
        values = [flush(value, name) for value in values]
    if operation in ("add", "sub"):
        exact = add(values[0], negate(values[1]) if operation == "sub" else values[1], mode)
    elif operation == "mul":
        exact = multiply(values[0], values[1])
    elif operation == "fma":
        exact = add(multiply(values[0], values[1]), values[2], mode)
    else:
        exact = divide(values[0], values[1])
    if name == "f64" and is_nan(exact):
        return DEFAULT_NAN64
    return finish(exact, name, mode, ftz, sat, relu)


def finish(exact: Value, name: str, mode: str, ftz: bool, sat: bool, relu: bool) -> int:
    """Rounding and the modifiers of a result."""
    if sat:
        if is_nan(exact) or exact <= 0:
            exact = Fraction(0)
        elif exact > 1:
            exact = Fraction(1)
    if relu and not is_nan(exact) and is_negative(exact):
        exact = Fraction(0)
    code = encode(exact, name, mode)
    if ftz:
        code = encode(flush(decode(code, name), name), name)
    return code


def extreme(
    maximum: bool, sources: list[int], name: str, nan_wins: bool, ftz: bool, xorsign: bool, absolute: bool
) -> int:
    """min and max: a number wins over a NaN unless .NaN; -0 is below +0."""
    values = [decode(code, name) for code in sources]
    if ftz:
        values = [flush(value, name) for value in values]
    if name == "f64" and all(map(is_nan, values)):
        return sources[-1] | 1 << 51
    if all(map(is_nan, values)) or (nan_wins and any(map(is_nan, values))):
        return encode(NAN, name)
    flip = xorsign and sum(code >> (len_bits(name) - 1) for code in sources) % 2 == 1
    if xorsign or absolute:
        values = [negate(value) if not is_nan(value) and is_negative(value) else value for value in values]
    kept = [value for value in values if not is_nan(value)]
    kept.sort(key=lambda value: (value, not is_negative(value)))
    chosen = kept[-1] if maximum else kept[0]
    return encode(negate(chosen) if flip else chosen, name)


def len_bits(name: str) -> int:
    """Register bits of a format."""
    return {"f64": 64, "f32": 32}.get(name, 16)


def approximate(function: str, code: int, name: str, ftz: bool) -> float:
    """The true value (as a double) of ex2, lg2, rcp, rsqrt, sqrt, sin, cos or tanh at a code."""
    value = decode(code, name)
    x = float(flush(value, name) if ftz else value)
    if math.isnan(x):
        return NAN
    if function == "ex2":
        return INF if x > 1100 else 2.0**x if x > -1100 else 0.0
    if function == "lg2":
        return NAN if x < 0 else -INF if x == 0 else math.log2(x) if x < INF else INF
    if function == "rsqrt":
        if x == 0:
            return math.copysign(INF, x)
        return NAN if x < 0 else 1.0 / math.sqrt(x)
    if function == "sqrt":
        return x if x == 0 else NAN if x < 0 else math.sqrt(x)
    if function == "rcp":
        return math.copysign(INF, x) if x == 0 else 1.0 / x
    if function in ("sin", "cos"):
        return NAN if math.isinf(x) else getattr(math, function)(x)
    return math.tanh(x)
