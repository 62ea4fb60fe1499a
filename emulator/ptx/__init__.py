"""Reading PTX: text in, a module of entries with typed operands, source lines and basic blocks out."""

from dsv4.emulator.ptx.blocks import Block, basic_blocks
from dsv4.emulator.ptx.model import (
    Address,
    Entry,
    Immediate,
    Instruction,
    Location,
    Module,
    Negated,
    Operand,
    Pair,
    Parameter,
    PtxError,
    Register,
    Sink,
    SpecialRegister,
    Symbol,
    Variable,
    Vector,
)
from dsv4.emulator.ptx.parser import parse

__all__ = [
    "Address",
    "Block",
    "Entry",
    "Immediate",
    "Instruction",
    "Location",
    "Module",
    "Negated",
    "Operand",
    "Pair",
    "Parameter",
    "PtxError",
    "Register",
    "Sink",
    "SpecialRegister",
    "Symbol",
    "Variable",
    "Vector",
    "basic_blocks",
    "parse",
]
