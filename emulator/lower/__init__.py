"""Lowering: one PTX kernel to the bytecode that the C core runs."""

from __future__ import annotations

from dsv4.emulator.lower import (  # noqa: F401  (importing a module of rules registers them)
    bulk_rules,
    convert_rules,
    float_rules,
    integer_rules,
    memory_rules,
    move_rules,
    sync_rules,
    tensor_rules,
)
from dsv4.emulator.lower.context import Lowering
from dsv4.emulator.lower.rules import find_rule
from dsv4.emulator.program import Assembler, Program
from dsv4.emulator.ptx.model import Entry, Module

__all__ = ["Lowering", "find_rule", "lower"]

_EXITS = frozenset(("ret", "exit"))
_BRANCHES = frozenset(("bra", "bra.uni"))


def lower(module: Module, entry: Entry, handlers: dict[str, int], *, slots: dict[str, int] | None = None) -> Program:
    """The bytecode of `entry`. `handlers`: names of the core's handlers to their numbers.

    `Program.lines` is the list of PTX instructions; a bytecode instruction's `line` indexes it (location, PTX line).
    `slots`, when given, is filled with the slot of each register and predicate that the kernel names.
    Raises PtxError, naming the opcode, the PTX line and the source line, for what the emulator cannot execute.
    """
    assembler = Assembler(handlers)
    state = Lowering(module, entry, assembler)
    targets = {instruction.target for instruction in entry.instructions if instruction.target >= 0}
    for index, instruction in enumerate(entry.instructions):
        state.ins, state.index = instruction, index
        if index in targets:
            assembler.label(str(index))
        opcode = instruction.opcode
        if opcode in _EXITS or opcode in _BRANCHES:
            guard = state.predicate_slot(instruction.guard) if instruction.guard is not None else -1
            if opcode in _EXITS:
                assembler.exit(guard=guard, negate=instruction.guard_negated, line=index)
            else:
                assembler.branch(str(instruction.target), guard=guard, negate=instruction.guard_negated, line=index)
            continue
        found = find_rule(opcode)
        if found is None:
            raise state.error("this opcode is not implemented")
        try:
            found[0](state, found[1])
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            raise state.error(str(error)) from None
    end = len(entry.instructions)
    if end in targets:
        assembler.label(str(end))
    assembler.exit(line=max(end - 1, 0))
    if slots is not None:
        slots.update(state.slots)
    return assembler.finish(entry.name, local_bytes=entry.local_bytes, lines=entry.instructions)
