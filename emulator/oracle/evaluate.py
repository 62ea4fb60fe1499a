"""One opcode on 32 lanes: dispatch to the oracle's parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dsv4.emulator.oracle.floats import add, arithmetic, extreme, len_bits, multiply, negate
from dsv4.emulator.oracle.formats import INF, NAN, Value, decode, encode, flush, is_nan, is_negative, round_fraction
from dsv4.emulator.oracle.integers import integer, signed

HALF = r"(f16x2|bf16x2|f16|bf16)"


@dataclass(frozen=True)
class Result:
    """`values` (uint64, one a lane) hold `bits` each; predicates are 0 or 1 with bits = 1."""

    values: np.ndarray
    bits: int


def evaluate(opcode: str, sources: list[np.ndarray]) -> Result:
    """The result of `opcode` for sources of shape (lanes,) in operand order; predicates are 0/1 arrays.

    Raises KeyError for an opcode that the oracle does not know.
    """
    lanes = [[int(source[lane]) for source in sources] for lane in range(len(sources[0]))]
    results = [_lane(opcode, values) for values in lanes]
    return Result(np.array([value for value, _ in results], dtype=np.uint64), results[0][1])


def _lane(opcode: str, s: list[int]) -> tuple[int, int]:
    for pattern, function in _TABLE:
        match = re.fullmatch(pattern, opcode)
        if match is not None:
            return function(match, s)
    found = integer(opcode, s)
    if found is None:
        raise KeyError(f"the oracle does not know {opcode}")
    return found


def _each(type_name: str, function: Callable[[list[int]], int], s: list[int]) -> tuple[int, int]:
    """Applies `function(codes)` to each element of packed types."""
    if not type_name.endswith("x2"):
        return function(s), len_bits(type_name)
    bits = len_bits(type_name[:-2])
    part = (1 << bits) - 1
    low = function([v & part for v in s])
    high = function([v >> bits & part for v in s])
    return low | high << bits, 2 * bits


def _arithmetic(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    operation, mode, ftz, sat, relu, type_name = m.groups()
    element = type_name.removesuffix("x2")
    return _each(
        type_name,
        lambda codes: arithmetic(operation, codes, element, mode or "rn", bool(ftz), bool(sat), bool(relu)),
        s,
    )


def _extreme(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    name, ftz, nan, xorsign, absolute, type_name = m.groups()
    element = type_name.removesuffix("x2")
    options = (bool(nan), bool(ftz), bool(xorsign), bool(absolute))
    return _each(type_name, lambda codes: extreme(name == "max", codes, element, *options), s)


def _sign(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    name, ftz, type_name = m.groups()
    element = type_name.removesuffix("x2")
    top = 1 << (len_bits(element) - 1)

    def one(codes: list[int]) -> int:
        code = codes[0]
        if is_nan(decode(code, element)):  # left open by the PTX ISA; measured on an H100
            return code | 1 << 51 if element == "f64" else encode(NAN, element)
        if ftz:
            code = encode(flush(decode(code, element), element), element)
        return code & ~top if name == "abs" else code ^ top

    return _each(type_name, one, s)


def _mixed(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    operation, sat, name = m.groups()
    c = decode(s[-1], "f32")
    a: Value = decode(s[0], name)
    if operation == "fma":
        a = multiply(a, decode(s[1], name))
    exact = add(a, negate(c) if operation == "sub" else c)
    if sat:
        exact = Fraction(0) if is_nan(exact) or exact <= 0 else min(exact, Fraction(1))
    return encode(exact, "f32"), 32


def _compare(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    compare, combination, ftz, type_name = m.groups()
    kind, bits = re.fullmatch(r"(bf|[bsuf])(\d+)", type_name).groups()  # type: ignore[union-attr]
    if kind in ("f", "bf"):
        a, b = (decode(v, type_name) for v in s[:2])
        if ftz:
            a, b = flush(a), flush(b)
    else:
        a, b = (signed(v, int(bits)) if kind == "s" else v & ((1 << int(bits)) - 1) for v in s[:2])
        compare = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(compare, compare)
    unordered = is_nan(a) or is_nan(b)
    if compare in ("num", "nan"):
        value = unordered == (compare == "nan")
    else:
        order = compare.removesuffix("u")
        true = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[order]
        value = compare.endswith("u") if unordered else true
    if combination == "and":
        value = value and bool(s[2])
    elif combination == "or":
        value = value or bool(s[2])
    elif combination == "xor":
        value = value != bool(s[2])
    return int(value), 1


def _set(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    compare, combination, ftz, to, type_name = m.groups()
    text = ".".join(filter(None, ["setp", compare, combination, "ftz" if ftz else None, type_name]))
    value, _ = _lane(text, s)
    return (0 if not value else 0x3F800000 if to == "f32" else 0xFFFFFFFF), 32


def _from_integer(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    mode, to, sign, bits = m.groups()
    value = signed(s[0], int(bits)) if sign == "s" else s[0] & ((1 << int(bits)) - 1)
    return encode(Fraction(value), to, mode), len_bits(to)


def _to_integer(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    mode, ftz, sign, to_text, source = m.groups()
    bits = int(to_text)
    value = decode(s[0], source)
    if ftz:
        value = flush(value, source)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if sign == "s" else (0, (1 << bits) - 1)
    if is_nan(value):
        number = 0 if source != "f64" and bits < 64 else 1 << (bits - 1)
        number = signed(number, bits) if sign == "s" else number
    elif value in (INF, -INF):
        number = high if value == INF else low
    else:
        number = max(low, min(high, round_fraction(Fraction(value), mode)))
    width = max(bits, 16)
    return number & ((1 << width) - 1), width


def _floats(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    mode, integral, ftz, finite, relu, sat, to, source = m.groups()
    if (to, source) == ("f32", "bf16") and not (mode or ftz or sat):
        return s[0] << 16, 32
    value = decode(s[0], source)
    if ftz:
        value = flush(value, source)
    if integral and isinstance(value, Fraction):
        rounded = Fraction(round_fraction(value, mode))
        value = -0.0 if rounded == 0 and value < 0 else rounded
    if sat:
        value = Fraction(0) if is_nan(value) or value <= 0 else value if value < 1 else Fraction(1)
    if is_nan(value):
        return _nan(s[0], source, to, mode), len_bits("f32" if to == "tf32" else to)
    if relu and is_negative(value):
        value = Fraction(0)
    code = encode(value, to, "rn" if integral or not mode else mode, finite=bool(finite))
    if ftz and to == "f32":
        code = encode(flush(decode(code, "f32")), "f32")
    return code, len_bits("f32" if to == "tf32" else to)


_FRACTION_BITS = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}


def _nan(code: int, source: str, to: str, mode: str | None) -> int:
    """A NaN converted, as an H100 does it: to and from f64 sign and payload stay, cvt.rna.tf32 clears the low bits."""
    if to == "tf32":
        return code & ~0x1FFF if mode == "rna" else 0x7FFFE000
    if "f64" not in (source, to):
        return encode(NAN, to)
    width, bits = _FRACTION_BITS[source], _FRACTION_BITS[to]
    fraction = (code & ((1 << width) - 1)) | 1 << (width - 1)
    fraction = fraction << (bits - width) if bits > width else fraction >> (width - bits)
    exponent = encode(INF, to)
    return code >> (len_bits(source) - 1) << (len_bits(to) - 1) | exponent | fraction


def _element(value: Value, to: str, mode: str, finite: bool, relu: bool) -> int:
    if to == "ue8m0":
        return _power(value, mode, finite)
    if relu and not is_nan(value) and is_negative(value):
        value = Fraction(0)
    return encode(value, to, mode, finite=finite)


def _power(value: Value, mode: str, finite: bool) -> int:
    """ue8m0: the exponent of a power of two; 255 is NaN."""
    if is_nan(value):
        return 255
    if value <= 0:
        return 0
    if value == INF:
        return 254 if finite else 255
    exponent = -200
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    if mode == "rp" and Fraction(2) ** exponent != value:
        exponent += 1
    if exponent > 127:
        return 254 if finite else 255
    return max(exponent + 127, 0)


_WIDTH = {"f16": 16, "bf16": 16, "e2m1": 4}


def _pack(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    mode, finite, relu, to, source = m.groups()
    if source == "f32":
        upper, lower = decode(s[0], "f32"), decode(s[1], "f32")
    else:
        name = source.removesuffix("x2")
        upper, lower = decode(s[0] >> 16 & 0xFFFF, name), decode(s[0] & 0xFFFF, name)
    width = _WIDTH.get(to, 8)
    high, low = (_element(v, to, mode, bool(finite), bool(relu)) for v in (upper, lower))
    return high << width | low, max(2 * width, 8)


def _unpack(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    relu, to, source = m.groups()
    width = _WIDTH.get(source, 8)
    out = 0
    for n in range(2):
        code = s[0] >> (width * n) & ((1 << width) - 1)
        if source == "ue8m0":
            value: Value = NAN if code == 255 else Fraction(2) ** (code - 127)
        else:
            value = decode(code, source)
        out |= _element(value, to, "rn", False, bool(relu)) << (16 * n)
    return out, 32


def _clip_pack(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    sign, bits = m[1], int(m[2])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if sign == "s" else (0, (1 << bits) - 1)
    a, b = (max(low, min(high, signed(v, 32))) & ((1 << bits) - 1) for v in s[:2])
    return (a << bits | b | (s[2] << (2 * bits) if m[3] else 0)) & 0xFFFFFFFF, 32


def _property(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    value = decode(s[0], "f32")
    infinite = value in (INF, -INF)
    finite = not is_nan(value) and not infinite
    normal = finite and (value == 0 or abs(float(value)) >= 2.0**-126)
    return int(
        {
            "finite": finite,
            "infinite": value in (INF, -INF),
            "number": not is_nan(value),
            "notanumber": is_nan(value),
            "normal": normal,
            "subnormal": finite and not normal,
        }[m[1]]
    ), 1


_COMPARE = r"(eq|ne|lt|le|gt|ge|lo|ls|hi|hs|equ|neu|ltu|leu|gtu|geu|num|nan)"
_FLOAT = r"(f16|bf16|f32|f64)"
_TABLE = [
    (rf"(add|sub|mul|fma|div)(?:\.(rn|rz|rm|rp))?(\.ftz)?(\.sat)?(\.relu)?\.(f32x2|f32|f64|{HALF[1:]}", _arithmetic),
    (r"(add|sub|fma)(?:\.rn)?(\.sat)?\.f32\.(f16|bf16)", _mixed),
    (rf"(min|max)(\.ftz)?(\.NaN)?(\.xorsign\.abs)?(\.abs)?\.(f32|f64|{HALF[1:]}", _extreme),
    (rf"(abs|neg)(\.ftz)?\.(f32|f64|{HALF[1:]}", _sign),
    (r"copysign\.f32", lambda m, s: ((s[0] & 0x80000000) | (s[1] & 0x7FFFFFFF), 32)),
    (r"testp\.(\w+)\.f32", _property),
    (rf"setp\.{_COMPARE}(?:\.(and|or|xor))?(\.ftz)?\.(\w+)", _compare),
    (rf"set\.{_COMPARE}(?:\.(and|or|xor))?(\.ftz)?\.([usf]32)\.(\w+)", _set),
    (r"selp\.[bsuf](16|32|64)", lambda m, s: (s[0] if s[2] else s[1], int(m[1]))),
    (r"(and|or|xor)\.pred", lambda m, s: ({"and": s[0] & s[1], "or": s[0] | s[1], "xor": s[0] ^ s[1]}[m[1]], 1)),
    (r"not\.pred", lambda m, s: (1 - s[0], 1)),
    (r"mov\.pred", lambda m, s: (s[0], 1)),
    (rf"cvt\.(rn|rz|rm|rp)\.{_FLOAT}\.([su])(8|16|32|64)", _from_integer),
    (rf"cvt\.(rn|rz|rm|rp)i(\.ftz)?(?:\.sat)?\.([su])(8|16|32|64)\.{_FLOAT}", _to_integer),
    (
        rf"cvt(?:\.(rna|rn|rz|rm|rp)(i)?)?(\.ftz)?(\.satfinite)?(\.relu)?(\.sat)?\.(tf32|f16|bf16|f32|f64)\.{_FLOAT}",
        _floats,
    ),
    (r"cvt\.(rn|rz|rp)(\.satfinite)?(\.relu)?\.(\w+)x2\.(f32|f16x2|bf16x2)", _pack),
    (r"cvt\.rn(\.relu)?\.(f16|bf16)x2\.(\w+)x2", _unpack),
    (r"cvt\.pack\.sat\.([su])(8|16)\.s32(\.b32)?", _clip_pack),
]
