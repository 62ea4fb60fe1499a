"""Planted mistakes: small changes of a kernel's PTX, each of which a person could have made in its source.

Every wait, fence, arrival, barrier and group of the kernel is left out in turn, and every parity, arrival count,
participant count, barrier number, byte count, group count, barrier address, stage index, register count and shuffle is
changed by one step. A kernel that is still right after such a change does not need what was changed; an emulator that
is silent about one that is wrong has a gap. Nothing is run here: see ``dsv4.generator.verify.mutation_run``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from dsv4.emulator.ptx import Address, Entry, Immediate, Instruction, Operand, Register, parse
from dsv4.emulator.sources import Sources

FAMILIES = {
    "drop-wait": "a wait on an mbarrier passes at once",
    "drop-fence": "a fence, or a wait for tensor memory or for the kernel before, is left out",
    "drop-arrive": "an arrival is left out, and the bytes that it announces",
    "drop-barrier": "a barrier of warps, CTA or cluster is left out",
    "drop-group": "a group of asynchronous operations is not closed, or not waited for",
    "parity": "a wait asks for the other phase",
    "arrivals": "an mbarrier expects one arrival more or less",
    "threads": "a named barrier is for one warp more or fewer",
    "barrier-id": "the next named barrier is used",
    "bytes": "more or fewer bytes are announced to an mbarrier: 16, or a row of 128",
    "kept-groups": "a wait leaves one group more outstanding",
    "barrier-address": "the mbarrier before or behind is used",
    "stage": "the stage index in an address is that of the neighbouring stage",
    "registers": "setmaxnreg asks for 8 registers more or fewer",
    "shuffle": "a shuffle reaches half as far",
}
ROW_BYTES = 128
"""A row of a box that is swizzled over 128 bytes."""
NAMED_BARRIERS = 16

_WAIT = r"mbarrier\.(?:try|test)_wait\b.*"
_ARRIVE = (
    r"(?:mbarrier\.(?:arrive|expect_tx)\b.*|(?:bar|barrier)(?:\.cta)?\.arrive\b.*|tcgen05\.commit\b.*"
    r"|barrier\.cluster\.arrive\b.*|cp\.async\.mbarrier\.arrive\b.*)"
)
_NAMED = r"(?:bar|barrier)(?:\.cta)?\.(?:sync|arrive)(?:\.aligned)?"
_DROPPED = {
    "drop-fence": r"(?:fence\.|membar\.|wgmma\.fence|tcgen05\.fence|tcgen05\.wait|griddepcontrol\.wait).*",
    "drop-arrive": _ARRIVE,
    "drop-barrier": r"(?:bar\.warp\.sync|(?:bar|barrier)(?:\.cta)?\.(?:sync|red)|barrier\.cluster\.wait)\b.*",
    "drop-group": r"(?:wgmma\.|cp\.async\.|cp\.async\.bulk\.)(?:commit|wait)(?:_group|_all)\b.*",
}
_FRESH = "%dsv4_changed"


@dataclass(frozen=True)
class Mutation:
    """One change of one statement. ``id`` names it across builds: family, place in the source, number there.

    ``ptx_line`` counts from 1; ``source`` is ``file:line``; ``start`` and ``end`` are offsets of the statement in the
    text that it was made for, and ``before`` and ``after`` its texts.
    """

    id: str
    family: str
    description: str
    opcode: str
    ptx_line: int
    source: str
    start: int
    end: int
    before: str
    after: str

    def apply(self, text: str) -> str:
        """The text with the change; lines keep their numbers. Raises ValueError for a text that it was not made for."""
        if text[self.start : self.end] != self.before:
            raise ValueError(f"{self.id}: the text is not the one that the mutation was made for")
        return text[: self.start] + self.after + text[self.end :]


@dataclass(frozen=True)
class _Statement:
    """An instruction and where its text lies, without the semicolon; ``operands`` are its operands' texts."""

    instruction: Instruction
    start: int
    end: int
    text: str
    operands: list[str]

    @property
    def opcode(self) -> str:
        return self.instruction.opcode

    def with_operand(self, index: int, text: str) -> str:
        """The statement with another operand, on as many lines."""
        operands = [*self.operands]
        operands[index] = text
        head = self.text[: self.text.index(self.opcode) + len(self.opcode)]
        lines = "\n" * (self.text.count("\n") - head.count("\n"))
        return f"{head} {', '.join(operands)}{lines}"


_Change = tuple[str, str, str]
"""(what it is called behind the family, description, new text)"""


def mutations(text: str, *, kernel: str = "", sources: Sources | None = None) -> list[Mutation]:
    """Every mutation of the kernel (its name may be left out where the PTX holds one), in the order of the text.

    ``sources`` finds the functions that ids name; without it, and where a source is not found, ids name lines.
    Raises PtxError for text that cannot be read, ValueError where a kernel has to be named.
    """
    entries = parse(text).entries
    if not kernel and len(entries) != 1:
        raise ValueError(f"kernel: found {len(entries)} in the PTX; valid: one of {', '.join(entries)}")
    entry = entries[kernel or next(iter(entries))]
    found = sources or Sources()
    stages = _stage_shifts(entry)
    numbers: Counter[str] = Counter()
    made = []
    for index, statement in enumerate(_statements(text, entry)):
        place = _place(statement.instruction, found)
        for family, (suffix, description, after) in _changes(statement, index in stages):
            stem = f"{family}{suffix}/{place}"
            instruction = statement.instruction
            source = str(instruction.location) if instruction.location.file else ""
            made.append(
                Mutation(
                    f"{stem}#{numbers[stem]}", family, description, instruction.opcode, instruction.ptx_line, source,
                    statement.start, statement.end, statement.text, after,
                )
            )  # fmt: skip
            numbers[stem] += 1
    return made


def _place(instruction: Instruction, sources: Sources) -> str:
    location = instruction.location
    if not location.file:
        return f"ptx:{instruction.ptx_line}"
    return f"{PurePath(location.file).stem}.{sources.function(location.file, location.line) or location.line}"


# --------------------------------------------------------------------------------------------------- finding the text


def _statements(text: str, entry: Entry) -> Iterator[_Statement]:
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    last = -1
    for instruction in entry.instructions:
        pattern = re.compile(rf"(?:@!?\s*[%\w$.]+\s+)?{re.escape(instruction.opcode)}(?![\w.:])([^;]*)")
        match = pattern.search(text, max(lines[instruction.ptx_line - 1], last))
        assert match is not None, f"{instruction.opcode} is not on line {instruction.ptx_line}"
        last = match.end()
        yield _Statement(instruction, match.start(), match.end(), match[0], _split(match[1]))


def _split(operands: str) -> list[str]:
    """Texts of operands: commas inside brackets and braces do not separate."""
    parts, depth = [""], 0
    for character in operands.strip():
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


# ------------------------------------------------------------------------------------------------------------- changes


def _changes(statement: _Statement, is_stage_shift: bool) -> Iterator[tuple[str, _Change]]:
    for make in (_drops, _waits, _counts, _groups, _addresses):
        yield from make(statement)
    if is_stage_shift:
        stage = _with_changed(statement, 1, 32, "xor", 1)
        yield "stage", ("", f"stage index {statement.operands[1]} xor 1", stage)


def _drops(statement: _Statement) -> Iterator[tuple[str, _Change]]:
    for family, pattern in _DROPPED.items():
        if re.fullmatch(pattern, statement.opcode):
            yield family, ("", f"{statement.opcode} is left out", _nothing(statement))


def _nothing(statement: _Statement) -> str:
    """No statement, on as many lines."""
    return "\n" * statement.text.count("\n")


def _waits(statement: _Statement) -> Iterator[tuple[str, _Change]]:
    if not re.fullmatch(_WAIT, statement.opcode):
        return
    passed = f"setp.eq.u32 {statement.operands[0]}, 0, 0"
    yield "drop-wait", ("", f"the wait on {statement.operands[1]} passes at once", passed)
    if ".parity" in statement.opcode:
        parity = _with_changed(statement, 2, 32, "xor", 1)
        yield "parity", ("", f"parity {statement.operands[2]} xor 1", parity)


def _counts(statement: _Statement) -> Iterator[tuple[str, _Change]]:
    opcode, operands = statement.opcode, statement.instruction.operands
    if re.fullmatch(r"mbarrier\.init\b.*", opcode):
        yield from _steps(statement, "arrivals", 1, (1, -1), "arrivals")
    elif re.fullmatch(_NAMED, opcode):
        if len(operands) > 1:
            yield from _steps(statement, "threads", 1, (32, -32), "threads")
        yield from _steps(statement, "barrier-id", 0, (1,), "number")
    elif re.fullmatch(r"mbarrier\.(?:arrive\.)?expect_tx\b.*", opcode):
        yield from _steps(statement, "bytes", len(operands) - 1, (16, -16, ROW_BYTES, -ROW_BYTES), "bytes")
    elif re.fullmatch(r"shfl\.sync\.(?:bfly|up|down)\b.*", opcode):
        offset = operands[2]
        if isinstance(offset, Immediate):
            half = offset.value // 2
            yield "shuffle", ("", f"offset {half} for {offset.value}", statement.with_operand(2, str(half)))
    elif re.fullmatch(r"setmaxnreg\b.*", opcode):
        yield from _steps(statement, "registers", 0, (8, -8), "registers")


def _groups(statement: _Statement) -> Iterator[tuple[str, _Change]]:
    if re.fullmatch(r"(?:wgmma|cp\.async|cp\.async\.bulk)\.wait_group\b.*", statement.opcode):
        yield from _steps(statement, "kept-groups", 0, (1,), "groups may stay")


def _addresses(statement: _Statement) -> Iterator[tuple[str, _Change]]:
    index = _barrier_operand(statement)
    if index is None or statement.opcode.startswith("mbarrier.init"):
        return
    for step in (8, -8):
        moved = f"{statement.operands[index].removesuffix(']')}{step:+d}]"
        yield "barrier-address", (f"{step:+d}", f"barrier {moved}", statement.with_operand(index, moved))


def _barrier_operand(statement: _Statement) -> int | None:
    """The operand that is an mbarrier's address."""
    opcode = statement.opcode
    if opcode.startswith("mbarrier."):
        return next(n for n, operand in enumerate(statement.instruction.operands) if isinstance(operand, Address))
    if opcode.startswith(("tcgen05.commit", "cp.async.mbarrier")):
        return 0
    if "mbarrier::complete_tx" in opcode:
        places = [n for n, operand in enumerate(statement.instruction.operands) if isinstance(operand, Address)]
        return places[2] if len(places) > 2 else None
    return None


def _steps(
    statement: _Statement, family: str, index: int, steps: tuple[int, ...], what: str
) -> Iterator[tuple[str, _Change]]:
    """The operand plus each of ``steps``, but no literal below 0 and no barrier number above 15."""
    for step in steps:
        operand = statement.instruction.operands[index]
        if isinstance(operand, Immediate) and not 0 <= operand.value + step < _limit(family):
            continue
        after = _with_changed(statement, index, 32, "add.s32", step)
        yield family, (f"{step:+d}", f"{statement.operands[index]} {step:+d} {what}", after)


def _limit(family: str) -> int:
    return NAMED_BARRIERS if family == "barrier-id" else 1 << 32


def _with_changed(statement: _Statement, index: int, bits: int, operation: str, value: int) -> str:
    """The statement with an operand changed: a literal in place, a register by an instruction before it, in braces."""
    operand: Operand = statement.instruction.operands[index]
    if isinstance(operand, Immediate):
        changed = operand.value ^ value if operation == "xor" else operand.value + value
        return statement.with_operand(index, str(changed))
    assert isinstance(operand, Register), f"{statement.text}: operand {index} is neither a register nor a literal"
    full = f"xor.b{bits}" if operation == "xor" else operation
    compute = f"{full} {_FRESH}, {statement.operands[index]}, {value}"
    return f"{{ .reg .b{bits} {_FRESH}; {compute}; {statement.with_operand(index, _FRESH)}; }}"


# -------------------------------------------------------------------------------------------------------------- stages


def _stage_shifts(entry: Entry) -> set[int]:
    """Indices of the shifts that turn a stage index into an offset.

    A register is a stage index where it is shifted by 3 (8 bytes) and the result is part of an mbarrier's address; all
    shifts of that register then count: those for barriers, for slots of shared memory, for matrix descriptors.
    """
    made: dict[str, list[Instruction]] = {}
    for instruction in entry.instructions:
        if instruction.operands and isinstance(instruction.operands[0], Register):
            made.setdefault(instruction.operands[0].name, []).append(instruction)
    barriers = set()
    for instruction in entry.instructions:
        statement = _Statement(instruction, 0, 0, instruction.opcode, [])
        index = _barrier_operand(statement)
        address = instruction.operands[index] if index is not None else None
        if isinstance(address, Address) and isinstance(address.base, Register):
            barriers.add(address.base.name)
    indices = set()
    for name in barriers:
        for shift in _summands(name, made, lambda each: _shift_of(each) == 3):
            source = shift.operands[1]
            assert isinstance(source, Register)
            indices.add(source.name)
    return {
        n
        for n, instruction in enumerate(entry.instructions)
        if (_shift_of(instruction) or 0) >= 3
        and isinstance(source := instruction.operands[1], Register)
        and source.name in indices
    }


def _shift_of(instruction: Instruction) -> int | None:
    """By how much a 32-bit register is shifted to the left by a literal; None for anything else."""
    if instruction.opcode not in ("shl.b32", "mul.lo.s32") or not isinstance(instruction.operands[1], Register):
        return None
    amount = instruction.operands[2]
    if not isinstance(amount, Immediate):
        return None
    if instruction.opcode == "shl.b32":
        return amount.value
    return amount.value.bit_length() - 1 if amount.value.bit_count() == 1 else None


def _summands(
    name: str, made: dict[str, list[Instruction]], wanted: Callable[[Instruction], bool], depth: int = 4
) -> Iterator[Instruction]:
    """Instructions that satisfy ``wanted`` among those that the register is a sum of."""
    if depth == 0 or len(made.get(name, ())) != 1:
        return
    (instruction,) = made[name]
    if wanted(instruction):
        yield instruction
    elif instruction.opcode in ("add.s32", "add.u32", "or.b32"):
        for operand in instruction.operands[1:]:
            if isinstance(operand, Register):
                yield from _summands(operand.name, made, wanted, depth - 1)
