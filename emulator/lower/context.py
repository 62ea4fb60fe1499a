"""State while one kernel is lowered: register slots, operands of the current instruction, emission."""

from __future__ import annotations

import struct

from dsv4.emulator.program import FLAG_CONVERGED, Assembler
from dsv4.emulator.ptx.model import (
    TYPE_BYTES,
    Address,
    Entry,
    Immediate,
    Instruction,
    Module,
    Negated,
    Operand,
    Pair,
    PtxError,
    Register,
    Sink,
    SpecialRegister,
    Symbol,
    Vector,
)

ABSENT = -1
ADDRESS_IS_64 = 16  # flag of memory handlers: the address is a 64-bit slot pair
CLOCKS = frozenset(("%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"))


def register_words(type_name: str) -> int:
    """32-bit slots that a register of this type takes."""
    return max(1, TYPE_BYTES[type_name] // 4)


class Lowering:
    """Rules read the operands of `ins` with the methods below and call `emit`."""

    def __init__(self, module: Module, entry: Entry, assembler: Assembler) -> None:
        self.module = module
        self.entry = entry
        self.asm = assembler
        self.ins: Instruction
        self.index = 0
        self.slots: dict[str, int] = {}
        self._parameters = {p.name: p for p in entry.parameters}

    # ------------------------------------------------------------------------------------------------ errors, emission

    def error(self, message: str) -> PtxError:
        """An error that names opcode, PTX line and source line."""
        return PtxError(f"{self.ins.opcode}: {message}", self.ins.ptx_line, str(self.ins.location))

    def emit(self, handler: str, slots: list[int], *imm: int, converged: bool = False) -> None:
        """One bytecode instruction under the guard of the current PTX instruction."""
        guard = self.predicate_slot(self.ins.guard) if self.ins.guard is not None else -1
        try:
            self.asm.emit(
                handler,
                tuple(slots),
                tuple(_int32(value) for value in imm),
                guard=guard,
                negate=self.ins.guard_negated,
                line=self.index,
                flags=FLAG_CONVERGED if converged else 0,
            )
        except KeyError:
            raise self.error(f"the emulator's core has no handler named {handler}") from None

    def operands(self, *counts: int) -> tuple[Operand, ...]:
        """The operands, after a check of their number."""
        if len(self.ins.operands) not in counts:
            raise self.error(f"{len(self.ins.operands)} operands; {' or '.join(map(str, counts))} are expected")
        return self.ins.operands

    # ------------------------------------------------------------------------------------------------------- registers

    def predicate_slot(self, register: Register) -> int:
        """The predicate slot of a register."""
        if register.type != "pred":
            raise self.error(f"{register.name} is .{register.type} where a predicate is expected")
        if register.name not in self.slots:
            self.slots[register.name] = self.asm.predicate()
        return self.slots[register.name]

    def register_slot(self, register: Register, bits: int) -> int:
        """The (low) slot of a register that must hold at least `bits`."""
        if register.type == "pred":
            raise self.error(f"{register.name} is a predicate where a {bits}-bit register is expected")
        if TYPE_BYTES[register.type] * 8 < bits:
            raise self.error(f"{register.name} is .{register.type} where {bits} bits are expected")
        if register.name not in self.slots:
            self.slots[register.name] = self.asm.register(register_words(register.type))
        return self.slots[register.name]

    def dst(self, operand: Operand, bits: int = 32) -> int:
        """A register that is written; '_' gives -1."""
        if isinstance(operand, Sink):
            return ABSENT
        if not isinstance(operand, Register):
            raise self.error("a destination that is no register")
        if bits <= 64 and TYPE_BYTES.get(operand.type, 0) * 8 > max(bits, 32):
            raise self.error(f"destination {operand.name} is .{operand.type}, wider than the {bits} bits written")
        return self.register_slot(operand, bits)

    def dst_predicate(self, operand: Operand) -> int:
        """A predicate that is written; '_' gives -1."""
        if isinstance(operand, Sink):
            return ABSENT
        if not isinstance(operand, Register):
            raise self.error("a destination that is no predicate")
        return self.predicate_slot(operand)

    def src(self, operand: Operand, bits: int = 32, kind: str = "b") -> int:
        """The slot of a source: register, literal or special register. `kind` f: literals are floating point."""
        if isinstance(operand, Register):
            return self.register_slot(operand, bits)
        if isinstance(operand, Immediate):
            return self.asm.constant(self._literal(operand, bits, kind), 2 if bits == 64 else 1)
        if isinstance(operand, SpecialRegister):
            return self.special(operand, bits)
        raise self.error(f"operand {operand} where a {bits}-bit value is expected")

    def _literal(self, operand: Immediate, bits: int, kind: str) -> int:
        value = operand.value
        if kind == "f" and bits == 32 and operand.kind == "f64":
            return struct.unpack("<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", value))[0]))[0]
        if kind == "f" and bits == 64 and operand.kind == "f32":
            return struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", value))[0]))[0]
        return value & ((1 << bits) - 1)

    def special(self, operand: SpecialRegister, bits: int) -> int:
        """The constant slot of a special register; 64-bit reads get a zero high half."""
        name = operand.name.lstrip("%")
        if operand.name in CLOCKS:
            raise self.error(f"{operand.name} can only be read by mov")
        if name == "is_explicit_cluster":
            return self.asm.constant(1)
        try:
            slot = self.asm.special(name)
        except KeyError:
            raise self.error(f"special register {operand.name} is not supported") from None
        if bits == 64:
            wide = self.asm.register(2)
            self.emit("mov_pair", [wide, wide + 1, slot, self.asm.constant(0)])
            return wide
        return slot

    def predicate(self, operand: Operand) -> tuple[int, int]:
        """A predicate source: slot, and 1 when it is negated. Literals become a written predicate."""
        if isinstance(operand, Negated):
            return self.predicate_slot(operand.register), 1
        if isinstance(operand, Register):
            return self.predicate_slot(operand), 0
        if isinstance(operand, Immediate) and operand.kind == "int":
            return self.predicate_constant(operand.value != 0), 0
        raise self.error(f"operand {operand} where a predicate is expected")

    def plain_predicate(self, operand: Operand) -> int:
        """A predicate source for handlers that know no negation: '!p' is computed into a slot of its own."""
        slot, negated = self.predicate(operand)
        if not negated:
            return slot
        fresh = self.asm.predicate()
        self.emit("not_pred", [fresh, slot])
        return fresh

    def predicate_constant(self, value: bool) -> int:
        """A predicate slot with a known value, written by a comparison of two constants in front of its use."""
        fresh = self.asm.predicate()
        zero = self.asm.constant(0)
        self.emit("setp_eq_b32" if value else "setp_ne_b32", [fresh, ABSENT, zero, zero, ABSENT], 0, 0, 0)
        return fresh

    # --------------------------------------------------------------------------------------------- other operand kinds

    def integer(self, operand: Operand) -> int:
        """A literal integer that becomes an immediate of the handler."""
        if not isinstance(operand, Immediate) or operand.kind != "int":
            raise self.error(f"operand {operand} where a literal integer is expected")
        return operand.value

    def elements(self, operand: Operand, count: int | None = None) -> tuple[Operand, ...]:
        """The elements of a vector operand; a single operand counts as a vector of one."""
        found = operand.elements if isinstance(operand, Vector) else (operand,)
        if count is not None and len(found) != count:
            raise self.error(f"a vector of {len(found)} operands where {count} are expected")
        return found

    def pair(self, operand: Operand) -> tuple[Operand, Operand]:
        """The two results of 'd|p'; without '|' the second is '_'."""
        if isinstance(operand, Pair):
            return operand.first, operand.second
        return operand, Sink()

    def address(self, operand: Operand, space: str) -> tuple[int, int, int]:
        """Slot of the base, byte offset, and ADDRESS_IS_64 when the base is a pair. space: shared, global, param ..."""
        if not isinstance(operand, Address):
            raise self.error(f"operand {operand} where an address in brackets is expected")
        base = operand.base
        if isinstance(base, Symbol):
            slot, offset, wide = self.symbol(base)
            return slot, offset + operand.offset, ADDRESS_IS_64 if wide else 0
        if isinstance(base, Immediate):
            wide = space not in ("shared", "tmem")
            return self.asm.constant(base.value, 2 if wide else 1), operand.offset, ADDRESS_IS_64 if wide else 0
        wide = TYPE_BYTES.get(base.type, 0) == 8
        if space in ("global", "generic", "param", "local") and not wide:
            raise self.error(f"{base.name} is .{base.type} where a 64-bit address is expected")
        return self.register_slot(base, 32), operand.offset, ADDRESS_IS_64 if wide else 0

    def narrow_address(self, operand: Operand) -> tuple[int, int]:
        """A shared address as a 32-bit slot (the low word of a 64-bit one: shared lies below 2^28), and its offset."""
        slot, offset, _ = self.address(operand, "shared")
        return slot, offset

    def symbol(self, symbol: Symbol) -> tuple[int, int, bool]:
        """Base slot and byte offset of a symbol's address, and whether the base is a 64-bit pair."""
        if symbol.name in self._parameters:
            offset = self._parameters[symbol.name].offset_bytes + symbol.offset
            return self.asm.special("param_lo", "param_hi"), offset, True
        if symbol.name in self.entry.variables:
            offset = self.entry.variables[symbol.name].offset_bytes + symbol.offset
            return self.asm.special("local_lo", "local_hi"), offset, True
        if symbol.name in self.module.shared:
            variable = self.module.shared[symbol.name]
            offset = variable.offset_bytes
            if variable.size_bytes == 0:  # the dynamic array begins behind the static ones
                align = variable.align_bytes
                offset = (self.module.static_shared_bytes + align - 1) // align * align
            return self.asm.special("smem_base"), offset + symbol.offset, False
        raise self.error(f"symbol {symbol.name} is not declared")


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
