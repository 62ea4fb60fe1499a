"""PTX text to a Module: statements, brace-local names, declarations."""

from __future__ import annotations

import re

from dsv4.emulator.ptx.lines import LineTracker, settle_synthetic_lines
from dsv4.emulator.ptx.model import (
    TYPE_BYTES,
    Entry,
    Instruction,
    Module,
    Parameter,
    PtxError,
    Register,
    Symbol,
    Variable,
    Vector,
)
from dsv4.emulator.ptx.operands import OperandReader

_STRING_OR_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_BEGIN_ASM, _END_ASM = "\x01", "\x02"
_SPACE = re.compile(r"[\s;]+")
_LABEL = re.compile(r"([A-Za-z_$%][\w$.]*)[ \t]*:(?!:)")
_INSTRUCTION = re.compile(
    r"(?:@(?P<negated>!?)\s*(?P<guard>[%\w$.]+)\s+)?(?P<opcode>[a-z]\w*(?:(?:\.|::)\w+)*)(?P<operands>[^;]*);"
)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)[^\n]*")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"\n]*)"[^\n]*')
_LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size)\s+([^\n]*)")
_REGISTER = re.compile(r"\.reg\s+(?:\.v([24])\s+)?\.(\w+)\s+([^;]*);")
_REGISTER_NAME = re.compile(r"([%\w$.]+)(?:<(\d+)>)?$")
_VARIABLE = re.compile(
    r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.]+)\s*((?:\[\d*\])*)\s*;",
)
_STATEMENT_DIRECTIVE = re.compile(r"\.(pragma|branchtargets|callprototype|alias)\b[^;]*;")
_ENTRY = re.compile(r"\.entry\s+([\w$.]+)\s*(?:\(([^)]*)\))?")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)?(?:\.align\s+\d+\s*)?)?([\w$.]+)\s*(?:\[(\d+)\])?$"
)
_PERFORMANCE = re.compile(
    r"\.(maxntid|reqntid|minnctapersm|maxnreg|maxnctapersm|reqnctapercluster|maxclusterrank|explicitcluster|noreturn)"
    r"\s*((?:\d+(?:\s*,\s*\d+)*)?)"
)
_LINKAGE = re.compile(r"\.(visible|extern|weak|common)\b")
_SECTION = re.compile(r"\.section\s+\S+\s*\{[^}]*\}")


def parse(text: str) -> Module:
    """Read a PTX file: `text` to a Module. Raises PtxError with the line and what was found there."""
    return _Parser(text).module()


def _without_comments(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        piece = match.group(0)
        if piece[0] == '"':
            return piece
        words = piece[2:].strip()
        if words == "begin inline asm":
            return _BEGIN_ASM
        if words == "end inline asm":
            return _END_ASM
        return "\n" * piece.count("\n") or " "

    return _STRING_OR_COMMENT.sub(replace, text)


class _Scope:
    """Names of one pair of braces; `suffix` makes them unique in the kernel."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.registers: dict[str, Register] = {}
        self.vectors: dict[str, Vector] = {}  # '.reg .v4 .b32 abcd', whose elements are the registers abcd.x, abcd.y …
        self.families: dict[str, tuple[int, str]] = {}  # '%r' -> (count, type) of '.reg .b32 %r<160>'
        self.labels: dict[str, int] = {}


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = _without_comments(text)
        self._position = 0
        self._counted = 0
        self._line = 1
        self._lines = LineTracker()
        self._entries: dict[str, Entry] = {}
        self._shared: dict[str, Variable] = {}
        self._heads = {"version": "", "target": ""}
        self._entry: Entry | None = None
        self._scopes: list[_Scope] = []
        self._scope_count = 0
        self._branches: list[tuple[Instruction, tuple[_Scope, ...]]] = []
        self._reader = OperandReader(self._lookup)

    def module(self) -> Module:
        text = self._text
        while True:
            space = _SPACE.match(text, self._position)
            if space is not None:
                self._position = space.end()
            if self._position >= len(text):
                break
            self._count_lines()
            self._statement(text[self._position])
        if self._entry is not None:
            raise self._error("the file ends inside a kernel")
        if not self._heads["target"]:
            raise self._error(".target is missing: this is no PTX module")
        for entry in self._entries.values():
            self._lines.resolve(entry.instructions)
            settle_synthetic_lines(entry)
        return Module(
            self._heads["version"],
            self._heads["target"].split(",")[0].strip(),
            dict(self._lines.files),
            self._entries,
            self._shared,
        )

    def _count_lines(self) -> None:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position

    def _error(self, message: str) -> PtxError:
        return PtxError(message, self._line, f"kernel {self._entry.name}" if self._entry is not None else "")

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
        return match

    def _statement(self, first: str) -> None:
        if first == ".":
            self._directive()
        elif first in (_BEGIN_ASM, _END_ASM):
            self._position += 1
            self._lines.inline_asm(begins=first == _BEGIN_ASM)
        elif first == "{":
            self._position += 1
            self._open_scope()
        elif first == "}":
            self._position += 1
            self._close_scope()
        elif (label := self._match(_LABEL)) is not None:
            self._label(label.group(1))
        else:
            self._instruction()

    def _open_scope(self) -> None:
        if self._entry is None:
            raise self._error("'{' outside of a kernel")
        suffix = f"#{self._scope_count}" if self._scopes else ""
        self._scope_count += 1
        self._scopes.append(_Scope(suffix))

    def _close_scope(self) -> None:
        if not self._scopes or self._entry is None:
            raise self._error("'}' without '{'")
        self._scopes.pop()
        if not self._scopes:
            self._settle_branches()
            self._entries[self._entry.name] = self._entry
            self._entry = None

    def _label(self, name: str) -> None:
        if self._entry is None or not self._scopes:
            raise self._error(f"label {name} outside of a kernel")
        scope = self._scopes[-1]
        if name in scope.labels:
            raise self._error(f"label {name} is defined twice in the same braces")
        scope.labels[name] = len(self._entry.instructions)
        self._entry.labels[name + scope.suffix] = len(self._entry.instructions)

    def _lookup(self, name: str) -> Register | Vector | None:
        for scope in reversed(self._scopes):
            found = scope.registers.get(name) or scope.vectors.get(name)
            if found is not None:
                return found
            if not scope.families:
                continue
            stem = name.rstrip("0123456789")
            family = scope.families.get(stem)
            if family is not None and len(stem) < len(name) and int(name[len(stem) :]) < family[0]:
                register = Register(name + scope.suffix, family[1])
                scope.registers[name] = register
                assert self._entry is not None
                self._entry.registers[register.name] = register.type
                return register
        return None

    def _instruction(self) -> None:
        match = self._match(_INSTRUCTION)
        if match is None:
            found = self._text[self._position : self._position + 40].split("\n")[0]
            raise self._error(f"{found!r} is neither a directive nor a label nor an instruction")
        if self._entry is None or not self._scopes:
            raise self._error(f"instruction {match['opcode']} outside of a kernel")
        guard: Register | None = None
        if match["guard"]:
            register = self._lookup(match["guard"])
            if not isinstance(register, Register) or register.type != "pred":
                raise self._error(f"guard {match['guard']} of {match['opcode']} is no declared predicate")
            guard = register
        try:
            operands = self._reader.read(match["operands"])
        except ValueError as error:
            raise self._error(f"{match['opcode']}: {error}") from None
        instruction = Instruction(
            match["opcode"], operands, guard, bool(match["negated"]), self._line, self._lines.location()
        )
        self._lines.note(instruction)
        self._entry.instructions.append(instruction)
        if instruction.opcode in ("bra", "bra.uni"):
            self._branches.append((instruction, tuple(self._scopes)))

    def _settle_branches(self) -> None:
        for instruction, scopes in self._branches:
            label = instruction.operands[0] if instruction.operands else None
            if not isinstance(label, Symbol):
                raise PtxError(f"{instruction.opcode} without a label", instruction.ptx_line)
            for scope in reversed(scopes):
                if label.name in scope.labels:
                    instruction.target = scope.labels[label.name]
                    break
            else:
                raise PtxError(f"{instruction.opcode} to the unknown label {label.name}", instruction.ptx_line)
        self._branches.clear()

    def _directive(self) -> None:
        if (match := self._match(_LOC)) is not None:
            self._lines.loc(int(match.group(1)), int(match.group(2)), int(match.group(3)))
        elif (match := self._match(_FILE)) is not None:
            self._lines.files[int(match.group(1))] = match.group(2)
        elif (match := self._match(_REGISTER)) is not None:
            self._registers(int(match.group(1) or 1), match.group(2), match.group(3))
        elif (match := self._match(_LINE_DIRECTIVE)) is not None:
            self._heads[match.group(1)] = match.group(2).strip()
        elif (match := self._match(_VARIABLE)) is not None:
            self._variable(match)
        elif (match := self._match(_ENTRY)) is not None:
            self._begin_entry(match.group(1), match.group(2) or "")
        elif (match := self._match(_PERFORMANCE)) is not None:
            self._performance(match.group(1), match.group(2))
        elif not any(self._match(pattern) for pattern in (_LINKAGE, _STATEMENT_DIRECTIVE, _SECTION)):
            found = self._text[self._position : self._position + 60].split("\n")[0]
            raise self._error(
                f"directive {found!r} is not supported; "
                "kernels have .reg, .shared, .local and .param declarations, and no .func, .global or .const"
            )

    def _registers(self, width: int, type_name: str, names: str) -> None:
        if not self._scopes or self._entry is None:
            raise self._error(".reg outside of a kernel")
        if type_name != "pred" and type_name not in TYPE_BYTES:
            raise self._error(f"register type .{type_name} is unknown")
        scope = self._scopes[-1]
        for piece in names.split(","):
            match = _REGISTER_NAME.match(piece.strip())
            if match is None:
                raise self._error(f".reg {piece.strip()!r} is no register name")
            name, count = match.groups()
            if count is not None and width > 1:
                raise self._error(f".reg {piece.strip()!r}: a family of vectors is not supported")
            if count is not None:
                scope.families[name] = (int(count), type_name)
            elif width == 1:
                self._register(scope, name, type_name)
            else:
                elements = [self._register(scope, f"{name}.{axis}", type_name) for axis in "xyzw"[:width]]
                scope.vectors[name] = Vector(tuple(elements))
                scope.registers.update({f"{name}.{color}": e for color, e in zip("rgba", elements, strict=False)})

    def _register(self, scope: _Scope, name: str, type_name: str) -> Register:
        register = Register(name + scope.suffix, type_name)
        scope.registers[name] = register
        assert self._entry is not None
        self._entry.registers[register.name] = type_name
        return register

    def _variable(self, match: re.Match[str]) -> None:
        space, align, type_name, name, dimensions = match.groups()
        if type_name not in TYPE_BYTES:
            raise self._error(f"variable {name} has the unknown type .{type_name}")
        size = TYPE_BYTES[type_name]
        for count in re.findall(r"\[(\d*)\]", dimensions):
            size *= int(count or 0)
        alignment = int(align or TYPE_BYTES[type_name])
        if space == "shared":
            # shared declarations of the module and of its kernels share one layout: what differs is only the name
            self._shared[name] = self._placed(self._shared, Variable(name, space, size, alignment))
            return
        if self._entry is None:
            raise self._error(f".local variable {name} outside of a kernel")
        self._entry.variables[name] = self._placed(self._entry.variables, Variable(name, space, size, alignment))

    @staticmethod
    def _placed(others: dict[str, Variable], variable: Variable) -> Variable:
        end = max((v.offset_bytes + v.size_bytes for v in others.values()), default=0)
        align = variable.align_bytes
        # the dynamic array begins behind all static ones: its offset is filled in by whoever lays shared memory out
        offset = 0 if variable.size_bytes == 0 else (end + align - 1) // align * align
        return Variable(variable.name, variable.space, variable.size_bytes, align, offset)

    def _begin_entry(self, name: str, parameter_text: str) -> None:
        parameters: list[Parameter] = []
        end = 0
        for piece in filter(None, (part.strip() for part in parameter_text.split(","))):
            match = _PARAMETER.match(piece)
            if match is None or match.group(2) not in TYPE_BYTES:
                raise self._error(f"kernel {name}: parameter {piece[:60]!r} cannot be read")
            align, type_name, parameter, count = match.groups()
            size = TYPE_BYTES[type_name] * int(count or 1)
            alignment = int(align or TYPE_BYTES[type_name])
            offset = (end + alignment - 1) // alignment * alignment
            parameters.append(Parameter(parameter, size, alignment, offset))
            end = offset + size
        self._entry = Entry(name, tuple(parameters))
        self._scope_count = 0

    def _performance(self, directive: str, numbers: str) -> None:
        if self._entry is None:
            raise self._error(f".{directive} outside of a kernel")
        values = [int(n) for n in re.findall(r"\d+", numbers)]
        triple = tuple([*values, 1, 1, 1][:3])
        assert len(triple) == 3
        if directive == "reqntid":
            self._entry.block_size = triple
        elif directive == "maxntid":
            self._entry.max_threads = triple[0] * triple[1] * triple[2]
        elif directive == "reqnctapercluster":
            self._entry.cluster_size = triple
