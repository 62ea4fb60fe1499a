"""Reading the operand list of one instruction."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from dsv4.emulator.ptx.model import (
    Address,
    Immediate,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    SpecialRegister,
    Symbol,
    Vector,
)

_TOKEN = re.compile(r"\s*([%\w$.]+|[{}\[\],+\-|!<>])")
_INTEGER = re.compile(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_DECIMAL = re.compile(r"\d+\.\d*(?:[eE][+-]?\d+)?$|\d+[eE][+-]?\d+$")

SPECIAL_REGISTERS = frozenset(
    [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    + [f"%{name}.{axis}" for name in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid") for axis in "xyz"]
    + ["%cluster_ctarank", "%cluster_nctarank", "%is_explicit_cluster", "%laneid", "%warpid", "%nwarpid"]
    + ["%smid", "%nsmid", "%gridid", "%clock", "%clock_hi", "%clock64"]
    + ["%globaltimer", "%globaltimer_lo", "%globaltimer_hi"]
    + ["%dynamic_smem_size", "%total_smem_size", "%aggr_smem_size"]
    + [f"%lanemask_{relation}" for relation in ("eq", "le", "lt", "ge", "gt")]
)


class OperandReader:
    """Reads operand texts; `lookup(name)` gives the register or vector of that name in the instruction's scope."""

    def __init__(self, lookup: Callable[[str], Register | Vector | None]) -> None:
        self._lookup = lookup

    def read(self, text: str) -> tuple[Operand, ...]:
        """The operands of one instruction. Raises ValueError with what could not be read."""
        tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError(f"operand text {text[position : position + 20]!r} cannot be read")
            tokens.append(match.group(1))
            position = match.end()
        self._tokens = tokens
        self._next = 0
        operands: list[Operand] = []
        while self._next < len(tokens):
            operands.append(self._operand())
            if self._next < len(tokens):
                self._expect(",")
        return tuple(operands)

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        if not token:
            raise ValueError("the operand list ends too early")
        self._next += 1
        return token

    def _expect(self, token: str) -> None:
        found = self._take()
        if found != token:
            raise ValueError(f"{found!r} where {token!r} is expected in the operands")

    def _operand(self) -> Operand:
        operand = self._simple()
        if self._peek() == "|":
            self._take()
            return Pair(operand, self._simple())
        return operand

    def _simple(self) -> Operand:
        token = self._peek()
        if token == "{":
            return self._vector()
        if token == "[":
            return self._address()
        if token == "!":
            self._take()
            register = self._simple()
            if not isinstance(register, Register):
                raise ValueError("'!' stands before something that is not a predicate register")
            return Negated(register)
        operand = self._atom()
        if isinstance(operand, Symbol) and self._peek() in ("+", "-"):
            return Symbol(operand.name, self._offset())
        return operand

    def _vector(self) -> Vector:
        self._expect("{")
        elements: list[Operand] = []
        while self._peek() != "}":
            elements.append(self._simple())
            if self._peek() == ",":
                self._take()
        self._expect("}")
        return Vector(tuple(elements))

    def _address(self) -> Address:
        self._expect("[")
        base = self._atom()
        if not isinstance(base, Register | Symbol | Immediate):
            raise ValueError("the base of an address is neither a register nor a symbol nor a number")
        offset = self._offset() if self._peek() in ("+", "-") else 0
        coordinates = None
        if self._peek() == ",":
            self._take()
            coordinates = self._vector()
        self._expect("]")
        return Address(base, offset, coordinates)

    def _offset(self) -> int:
        total = 0
        while self._peek() in ("+", "-"):
            sign = -1 if self._take() == "-" else 1
            number = self._atom()
            if not isinstance(number, Immediate) or number.kind != "int":
                raise ValueError("an address offset that is not an integer")
            total += sign * number.value
        return total

    def _atom(self) -> Operand:
        token = self._take()
        if token == "-":
            number = self._atom()
            if not isinstance(number, Immediate):
                raise ValueError("'-' stands before something that is not a number")
            if number.kind == "int":
                return Immediate("int", -number.value)
            return Immediate(number.kind, number.value ^ (1 << (31 if number.kind == "f32" else 63)))
        if token[0].isdigit():
            return _number(token)
        register = self._lookup(token)
        if register is not None:
            return register
        if token == "_":
            return Sink()
        if token == "WARP_SZ":
            return Immediate("int", 32)
        if token in SPECIAL_REGISTERS:
            return SpecialRegister(token)
        if token[0] == "%":
            raise ValueError(f"register {token} is not declared, and is no special register that is known")
        if not (token[0].isalpha() or token[0] in "_$"):
            raise ValueError(f"{token!r} is no operand")
        return Symbol(token)


def _number(token: str) -> Immediate:
    if token[:2] in ("0f", "0F") and len(token) == 10:
        return Immediate("f32", int(token[2:], 16))
    if token[:2] in ("0d", "0D") and len(token) == 18:
        return Immediate("f64", int(token[2:], 16))
    match = _INTEGER.match(token)
    if match is not None:
        digits = match.group(1)
        if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xXbB":
            return Immediate("int", int(digits, 8))
        return Immediate("int", int(digits, 0))
    if _DECIMAL.match(token):
        return Immediate("f64", struct.unpack("<Q", struct.pack("<d", float(token)))[0])
    raise ValueError(f"number {token!r} cannot be read")
