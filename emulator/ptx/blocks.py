"""Basic blocks of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4.emulator.ptx.model import Entry

_ENDS = frozenset(("bra", "bra.uni", "ret", "exit", "trap"))


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions [start, end) without a branch or a branch target in between; successors are block numbers."""

    start: int
    end: int
    successors: tuple[int, ...]


def basic_blocks(entry: Entry) -> list[Block]:
    """The blocks of `entry` in text order. A branch to the very end of the kernel has no successor."""
    instructions = entry.instructions
    starts = {0, *(i.target for i in instructions if i.target >= 0), *entry.labels.values()}
    starts.update(n + 1 for n, i in enumerate(instructions) if i.opcode in _ENDS)
    ordered = sorted(s for s in starts if s < len(instructions))
    number = {start: n for n, start in enumerate(ordered)}
    blocks = []
    for start, end in zip(ordered, [*ordered[1:], len(instructions)], strict=True):
        last = instructions[end - 1]
        successors = []
        if last.target >= 0 and last.target in number:
            successors.append(number[last.target])
        if (last.opcode not in _ENDS or last.guard is not None) and end in number:
            successors.append(number[end])
        blocks.append(Block(start, end, tuple(dict.fromkeys(successors))))
    return blocks
