"""Integer, logic and bit-field opcodes on Python integers."""

from __future__ import annotations

import re
from collections.abc import Callable


def signed(value: int, bits: int) -> int:
    """The two's-complement reading of the low `bits`."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _read(value: int, sign: str, bits: int) -> int:
    return signed(value, bits) if sign == "s" else value & ((1 << bits) - 1)


def _truncated(a: int, b: int) -> tuple[int, int]:
    q = abs(a) // abs(b)
    q = -q if (a < 0) != (b < 0) else q
    return q, a - q * b


def _halves(function: Callable[[int, int], int], sign: str, a: int, b: int) -> int:
    low = function(_read(a, sign, 16), _read(b, sign, 16)) & 0xFFFF
    return low | (function(_read(a >> 16, sign, 16), _read(b >> 16, sign, 16)) & 0xFFFF) << 16


def integer(opcode: str, s: list[int]) -> tuple[int, int] | None:
    """(result, result bits) of an integer opcode, or None when this module does not know it."""
    for pattern, function in _TABLE:
        match = re.fullmatch(pattern, opcode)
        if match is not None:
            value, bits = function(match, s)
            return value & ((1 << bits) - 1), bits
    return None


def _multiply(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    bits = int(m[4])
    product = _read(s[0], m[3], bits) * _read(s[1], m[3], bits)
    if m[2] == "hi":
        product >>= bits
    return product + (s[2] if m[1] == "mad" else 0), bits * (2 if m[2] == "wide" else 1)


def _divide(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    bits = int(m[3])
    a, b = _read(s[0], m[2], bits), _read(s[1], m[2], bits)
    if b == 0:
        return (-1 if m[1] == "div" else a), bits
    return _truncated(a, b)[0 if m[1] == "div" else 1], bits


def _extreme(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    choose = min if m[1] == "min" else max
    relu = (lambda v: max(v, 0)) if m[2] else (lambda v: v)
    if m[4].endswith("x2"):
        return _halves(lambda a, b: relu(choose(a, b)), m[3], s[0], s[1]), 32
    bits = int(m[4])
    return relu(choose(_read(s[0], m[3], bits), _read(s[1], m[3], bits))), bits


def _logic(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    return {"and": s[0] & s[1], "or": s[0] | s[1], "xor": s[0] ^ s[1]}[m[1]], int(m[2])


def _shift(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    bits = int(m[3])
    count = min(s[1] & 0xFFFFFFFF, bits)
    if m[1] == "shl":
        return s[0] << count, bits
    return _read(s[0], m[2], bits) >> count, bits


def _funnel(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    both = (s[1] & 0xFFFFFFFF) << 32 | (s[0] & 0xFFFFFFFF)
    count = s[2] & 31 if m[2] == "wrap" else min(s[2] & 0xFFFFFFFF, 32)
    return ((both << count) >> 32 if m[1] == "l" else both >> count), 32


def _permute(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    source = [(s[0] | s[1] << 32) >> (8 * n) & 0xFF for n in range(8)]
    c, n = s[2], s[2] & 3
    if m[1] is None:
        out = []
        for k in range(4):
            nibble = c >> (4 * k) & 15
            byte = source[nibble & 7]
            out.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    else:
        order = {
            "f4e": [(n + k) % 8 for k in range(4)],
            "b4e": [(n - k) % 8 for k in range(4)],
            "rc8": [n] * 4,
            "ecl": [max(k, n) for k in range(4)],
            "ecr": [min(k, n) for k in range(4)],
            "rc16": [2 * (n & 1), 2 * (n & 1) + 1] * 2,
        }[m[1]]
        out = [source[k] for k in order]
    return sum(byte << (8 * k) for k, byte in enumerate(out)), 32


def _extract(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    bits = int(m[2])
    position, length = s[1] & 0xFF, s[2] & 0xFF
    fill = 0
    if m[1] == "s" and length:
        fill = s[0] >> min(position + length - 1, bits - 1) & 1
    value = 0
    for k in range(bits):
        value |= ((s[0] >> (position + k) & 1) if k < length and position + k < bits else fill) << k
    return value, bits


def _insert(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    bits = int(m[1])
    position, length = s[2] & 0xFF, s[3] & 0xFF
    value = s[1]
    for k in range(length):
        if position + k < bits:
            value = (value & ~(1 << (position + k))) | (s[0] >> k & 1) << (position + k)
    return value, bits


def _mask(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    position, length = (s[0] & 31, s[1] & 31) if m[1] == "wrap" else (min(s[0], 32), min(s[1], 32))
    return ((1 << length) - 1) << position, 32


def _extend(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    length = s[1] & 31 if m[1] == "wrap" else min(s[1], 32)
    if length == 0:
        return 0, 32
    return _read(s[0], m[2], length), 32


def _find(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    bits = int(m[3])
    value = _read(s[0], m[2], bits)
    if value < 0:
        value = ~value
    if value == 0:
        return -1, 32
    top = value.bit_length() - 1
    return (bits - 1 - top if m[1] else top), 32


def _dot4(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    return s[2] + sum(_read(s[0] >> (8 * n), m[1], 8) * _read(s[1] >> (8 * n), m[2], 8) for n in range(4)), 32


def _dot2(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    first = 2 if m[1] == "hi" else 0
    return s[2] + sum(
        _read(s[0] >> (16 * n), m[2], 16) * _read(s[1] >> (8 * (n + first)), m[3], 8) for n in range(2)
    ), 32


def _saturated(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    b = signed(s[1], 32)
    return max(-(1 << 31), min((1 << 31) - 1, signed(s[0], 32) + (b if m[1] == "add" else -b))), 32


def _convert(m: re.Match[str], s: list[int]) -> tuple[int, int]:
    to, source = int(m[3]), int(m[5])
    value = _read(s[0], m[4], source)
    if m[1]:
        low, high = (-(1 << (to - 1)), (1 << (to - 1)) - 1) if m[2] == "s" else (0, (1 << to) - 1)
        value = max(low, min(high, value))
    value = _read(value, m[2], to)
    return value, max(to, 16)  # the tests use 16-bit registers for 8-bit results: the sign fills them


_TABLE: list[tuple[str, Callable[[re.Match[str], list[int]], tuple[int, int]]]] = [
    (r"(add|sub)\.[su](16|32|64)", lambda m, s: (s[0] + (s[1] if m[1] == "add" else -s[1]), int(m[2]))),
    (r"(add|sub)\.sat\.s32", _saturated),
    (r"add\.([su])16x2", lambda m, s: (_halves(lambda a, b: a + b, "u", s[0], s[1]), 32)),
    (r"(mul|mad)\.(lo|hi|wide)\.([su])(16|32|64)", _multiply),
    (r"(div|rem)\.([su])(16|32|64)", _divide),
    (r"(min|max)(\.relu)?\.([su])(16x2|16|32|64)", _extreme),
    (r"abs\.s(16|32|64)", lambda m, s: (abs(signed(s[0], int(m[1]))), int(m[1]))),
    (r"neg\.s(16|32|64)", lambda m, s: (-s[0], int(m[1]))),
    (r"sad\.([su])32", lambda m, s: (s[2] + abs(_read(s[0], m[1], 32) - _read(s[1], m[1], 32)), 32)),
    (r"dp4a\.([su])32\.([su])32", _dot4),
    (r"dp2a\.(lo|hi)\.([su])32\.([su])32", _dot2),
    (r"(and|or|xor)\.b(16|32|64)", _logic),
    (r"not\.b(16|32|64)", lambda m, s: (~s[0], int(m[1]))),
    (r"cnot\.b(16|32|64)", lambda m, s: (int(s[0] == 0), int(m[1]))),
    (
        r"lop3\.b32",
        lambda m, s: (
            sum((s[3] >> (4 * (s[0] >> k & 1) + 2 * (s[1] >> k & 1) + (s[2] >> k & 1)) & 1) << k for k in range(32)),
            32,
        ),
    ),
    (r"(shl|shr)\.([bsu])(16|32|64)", _shift),
    (r"shf\.([lr])\.(wrap|clamp)\.b32", _funnel),
    (r"prmt\.b32(?:\.(\w+))?", _permute),
    (r"brev\.b(32|64)", lambda m, s: (int(f"{s[0]:0{int(m[1])}b}"[::-1], 2), int(m[1]))),
    (r"bfe\.([su])(32|64)", _extract),
    (r"bfi\.b(32|64)", _insert),
    (r"bmsk\.(wrap|clamp)\.b32", _mask),
    (r"szext\.(wrap|clamp)\.([su])32", _extend),
    (r"popc\.b(32|64)", lambda m, s: (s[0].bit_count(), 32)),
    (r"clz\.b(32|64)", lambda m, s: (int(m[1]) - s[0].bit_length(), 32)),
    (r"bfind(\.shiftamt)?\.([su])(32|64)", _find),
    (r"cvt(\.sat)?\.([su])(8|16|32|64)\.([su])(8|16|32|64)", _convert),
    (r"mov\.[bsuf](16|32|64)", lambda m, s: (s[0], int(m[1]))),
]
