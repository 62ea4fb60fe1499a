"""Which source line an instruction belongs to: the rules that make .loc of CuTeDSL kernels true.

Three things have to be put right. Line 0 means 'made by the compiler': the previous line goes on. Inside inline
assembly the back end adds the line number within the asm text, so the line is frozen at the last .loc in front of it.
And what is made from `if` and `for` carries column 0 of the first line behind the kernel: such instructions take
the line of the next ordinary instruction of their block.
"""

from __future__ import annotations

from dsv4.emulator.ptx.blocks import basic_blocks
from dsv4.emulator.ptx.model import Entry, Instruction, Location


class LineTracker:
    """Follows .loc through the text. File names stand at the end of the PTX, so they are filled in by `resolve`."""

    def __init__(self) -> None:
        self.files: dict[int, str] = {}
        self._file = 0
        self._number = 0
        self._column = 0
        self._frozen = False
        self._raw: dict[int, tuple[int, int]] = {}

    def loc(self, file: int, line: int, column: int) -> None:
        """A .loc directive: `file` is an index, `line` and `column` count from 1, 0 means none."""
        if self._frozen or line == 0:
            return
        self._file, self._number, self._column = file, line, column

    def inline_asm(self, begins: bool) -> None:
        """The markers around inline assembly."""
        self._frozen = begins

    def location(self) -> Location:
        """The current line, without its file name."""
        return Location("", self._number)

    def note(self, instruction: Instruction) -> None:
        """Remember the raw place of an instruction until the file names are known."""
        instruction.synthetic = self._column == 0
        self._raw[id(instruction)] = (self._file, self._number)

    def resolve(self, instructions: list[Instruction]) -> None:
        """Give every instruction its file name."""
        known: dict[tuple[int, int], Location] = {}
        for instruction in instructions:
            raw = self._raw[id(instruction)]
            if raw not in known:
                known[raw] = Location(self.files.get(raw[0], ""), raw[1])
            instruction.location = known[raw]


def settle_synthetic_lines(entry: Entry) -> None:
    """Move instructions that the compiler made to the line of an ordinary neighbour: next in the block, else before."""
    for block in basic_blocks(entry):
        members = entry.instructions[block.start : block.end]
        for order in (reversed(members), members):
            line: Location | None = None
            for instruction in order:
                if not instruction.synthetic:
                    line = instruction.location
                elif line is not None:
                    instruction.location = line
                    instruction.synthetic = False
