"""The bytecode that the C core runs: instructions, operand slots and constants as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MAX_IMMEDIATES = 8

# the same fields as InsCode in core/emu.h
INSTRUCTION = np.dtype(
    [
        ("handler", "<i4"),
        ("slot_first", "<i4"),
        ("n_slots", "<i4"),
        ("target", "<i4"),
        ("line", "<i4"),
        ("guard", "<i4"),
        ("guard_negate", "<i4"),
        ("flags", "<i4"),
        ("predicates", "<u4"),
        ("imm", "<i4", (MAX_IMMEDIATES,)),
    ]
)
CONSTANT = np.dtype([("slot", "<i4"), ("special", "<i4"), ("value", "<u4")])

FLAG_BRANCH, FLAG_EXIT, FLAG_CONVERGED = 1, 2, 4

# the order of enum Special in core/emu.h
SPECIALS = [
    "tid.x",
    "tid.y",
    "tid.z",
    "ntid.x",
    "ntid.y",
    "ntid.z",
    "ctaid.x",
    "ctaid.y",
    "ctaid.z",
    "nctaid.x",
    "nctaid.y",
    "nctaid.z",
    "laneid",
    "warpid",
    "nwarpid",
    "cluster_ctarank",
    "cluster_nctarank",
    "cluster_ctaid.x",
    "cluster_ctaid.y",
    "cluster_ctaid.z",
    "cluster_nctaid.x",
    "cluster_nctaid.y",
    "cluster_nctaid.z",
    "clusterid.x",
    "clusterid.y",
    "clusterid.z",
    "nclusterid.x",
    "nclusterid.y",
    "nclusterid.z",
    "smem_base",
    "dynamic_smem_size",
    "total_smem_size",
    "param_lo",
    "param_hi",
    "local_lo",
    "local_hi",
    "lanemask_eq",
    "lanemask_le",
    "lanemask_lt",
    "lanemask_ge",
    "lanemask_gt",
    "smid",
    "nsmid",
    "gridid",
]
SPECIAL = {name: number for number, name in enumerate(SPECIALS)}


class PredicateSlot(int):
    """A slot of the predicates, which are numbered apart from the registers."""


@dataclass
class Program:
    """One kernel as bytecode. `registers` and `predicates` count slots; constants are (slot, special or -1, value)."""

    name: str
    instructions: np.ndarray
    slots: np.ndarray
    constants: np.ndarray
    registers: int
    predicates: int
    local_bytes: int = 0
    lines: list = field(default_factory=list)  # the line table that instruction["line"] indexes, opaque here


class Assembler:
    """Collects instructions one by one and freezes them into a `Program`; used by the lowering and by tests.

    Handlers are named; `handlers` maps a name to its number in the built library (`library.load().handlers`).
    """

    def __init__(self, handlers: dict[str, int]) -> None:
        self._handlers = handlers
        self._rows: list[tuple] = []
        self._slots: list[int] = []
        self._constants: list[tuple[int, int, int]] = []
        self._plain: dict[int, int] = {}
        self._special: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self.registers = 0
        self.predicates = 0

    def register(self, words: int = 1) -> int:
        """A fresh slot; `words` 2 for a 64-bit register (two consecutive slots, the low one is returned)."""
        slot = self.registers
        self.registers += words
        return slot

    def predicate(self) -> PredicateSlot:
        """A fresh predicate slot."""
        self.predicates += 1
        return PredicateSlot(self.predicates - 1)

    def constant(self, value: int, words: int = 1) -> int:
        """The slot of a plain constant (two consecutive slots when `words` is 2); equal ones are shared."""
        key = (value & (1 << (32 * words)) - 1) | words << 64
        if key not in self._plain:
            slot = self.register(words)
            self._plain[key] = slot
            for word in range(words):
                self._constants.append((slot + word, -1, value >> (32 * word) & 0xFFFFFFFF))
        return self._plain[key]

    def special(self, *names: str) -> int:
        """The slot of a special register; two names (low, high) make a 64-bit pair."""
        key = " ".join(names)
        if key not in self._special:
            slot = self.register(len(names))
            self._special[key] = slot
            for word, name in enumerate(names):
                self._constants.append((slot + word, SPECIAL[name], 0))
        return self._special[key]

    def label(self, name: str) -> None:
        """Names the next instruction."""
        self._labels[name] = len(self._rows)

    def emit(
        self,
        handler: str | None,
        slots: tuple[int, ...] = (),
        imm: tuple[int, ...] = (),
        *,
        guard: int = -1,
        negate: bool = False,
        target: str | None = None,
        line: int = 0,
        flags: int = 0,
    ) -> int:
        """Appends one instruction and returns its index. `handler` None is for branches and exits."""
        number = self._handlers[handler] if handler is not None else -1
        if target is not None:
            self._jumps.append((len(self._rows), target))
        if len(imm) > MAX_IMMEDIATES:
            raise ValueError(f"{handler}: {len(imm)} immediates, at most {MAX_IMMEDIATES} fit")
        padded = tuple(imm) + (0,) * (MAX_IMMEDIATES - len(imm))
        predicates = sum(1 << n for n, slot in enumerate(slots[:32]) if isinstance(slot, PredicateSlot))
        row = (number, len(self._slots), len(slots), -1, line, guard, int(negate), flags, predicates, padded)
        self._rows.append(row)
        self._slots.extend(slots)
        return len(self._rows) - 1

    def branch(self, target: str, *, guard: int = -1, negate: bool = False, line: int = 0) -> int:
        """A (guarded) branch to a label."""
        return self.emit(None, guard=guard, negate=negate, target=target, line=line, flags=FLAG_BRANCH)

    def exit(self, *, guard: int = -1, negate: bool = False, line: int = 0) -> int:
        """`ret` or `exit`."""
        return self.emit(None, guard=guard, negate=negate, line=line, flags=FLAG_EXIT)

    def finish(self, name: str, *, local_bytes: int = 0, lines: list | None = None) -> Program:
        """The frozen program. Raises KeyError for a branch to a label that was never placed."""
        instructions = np.array(self._rows, dtype=INSTRUCTION)
        for index, label in self._jumps:
            instructions["target"][index] = self._labels[label]
        constants = np.array(self._constants, dtype=CONSTANT)
        return Program(
            name,
            instructions,
            np.array(self._slots or [0], dtype=np.int32),
            constants,
            max(self.registers, 1),
            max(self.predicates, 1),
            local_bytes,
            lines or [],
        )
