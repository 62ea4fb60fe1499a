"""What a PTX module is made of, once it has been read."""

from __future__ import annotations

from dataclasses import dataclass, field

TYPE_BYTES = {
    **dict.fromkeys(("b8", "s8", "u8"), 1),
    **dict.fromkeys(("b16", "s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "s32", "u32", "f32", "f16x2", "bf16x2"), 4),
    **dict.fromkeys(("b64", "s64", "u64", "f64"), 8),
    "b128": 16,
}


class PtxError(ValueError):
    """PTX text that cannot be read or executed; `line` is the line of the PTX file, counted from 1."""

    def __init__(self, message: str, line: int, where: str = "") -> None:
        super().__init__(f"PTX line {line}: {message}" + (f" ({where})" if where else ""))
        self.line = line


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the kernel's source. `file` is '' where the compiler gave none."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "no source line"


@dataclass(frozen=True, slots=True)
class Register:
    """A register under its unique name: names declared inside braces carry a suffix '#scope'."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A literal. `kind` is 'int' (a Python integer, any sign), 'f32' or 'f64' (the bits of the value)."""

    kind: str
    value: int


@dataclass(frozen=True, slots=True)
class SpecialRegister:
    """A read-only register of the machine, with its component: '%tid.x', '%laneid'."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a parameter or variable, plus a constant number of bytes; or a branch label."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Sink:
    """The operand '_': a result that nobody wants."""


@dataclass(frozen=True, slots=True)
class Negated:
    """A predicate source written '!%p'."""

    register: Register


@dataclass(frozen=True, slots=True)
class Pair:
    """Two results written 'd|p', as elect, shfl and setp have them."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Vector:
    """Operands in braces."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """An operand in brackets: base, constant offset in bytes and, for tensor copies, the coordinates."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: Vector | None = None


Operand = Register | Immediate | SpecialRegister | Symbol | Sink | Negated | Pair | Vector | Address


@dataclass(slots=True)
class Instruction:
    """One instruction with its complete opcode text; `target` is the index of the instruction branched to."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool
    ptx_line: int
    location: Location
    target: int = -1
    # written by the compiler between the user's statements (.loc with column 0 or line 0)
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One kernel parameter; `offset_bytes` is its place in the packed parameter block."""

    name: str
    size_bytes: int
    align_bytes: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Variable:
    """A .shared or .local declaration; `size_bytes` is 0 for the dynamic shared array."""

    name: str
    space: str
    size_bytes: int
    align_bytes: int
    offset_bytes: int = 0


@dataclass(slots=True)
class Entry:
    """One kernel. `labels` maps unique label names to instruction indices (may equal the instruction count)."""

    name: str
    parameters: tuple[Parameter, ...]
    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    block_size: tuple[int, int, int] | None = None  # .reqntid
    max_threads: int | None = None  # .maxntid
    cluster_size: tuple[int, int, int] | None = None  # .reqnctapercluster

    @property
    def parameter_bytes(self) -> int:
        """Size of the packed parameter block."""
        return max((p.offset_bytes + p.size_bytes for p in self.parameters), default=0)

    @property
    def local_bytes(self) -> int:
        """Bytes of .local memory that each thread needs."""
        return max((v.offset_bytes + v.size_bytes for v in self.variables.values() if v.space == "local"), default=0)


@dataclass(slots=True)
class Module:
    """A PTX file."""

    version: str
    target: str
    files: dict[int, str]
    entries: dict[str, Entry]
    shared: dict[str, Variable]  # module-level .shared declarations, the extern dynamic array among them

    @property
    def static_shared_bytes(self) -> int:
        """Bytes of statically declared shared memory in front of the dynamic array."""
        return max((v.offset_bytes + v.size_bytes for v in self.shared.values()), default=0)
