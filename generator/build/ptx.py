"""What the PTX of a kernel says about it: entries, TMEM columns, and which source lines took part."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

SOURCE_NAME = "source.py"

_ENTRY = re.compile(r"^\s*\.visible\s+\.entry\s+([\w$]+)", re.MULTILINE)
_ALLOC = re.compile(r"\btcgen05\.alloc\.[\w:.]*\s+\[[^\]]*\]\s*,\s*([^;\s]+)\s*;")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_LOC = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)\s+\d+(?:.*?inlined_at\s+(\d+)\s+(\d+)\s+\d+)?", re.MULTILINE)

_INLINE_ASM = re.compile(r"// begin inline asm\n.*?// end inline asm\n", re.DOTALL)


def entries(ptx: str) -> dict[str, str]:
    """The body of each kernel, by its name, in the order of the file."""
    marks = list(_ENTRY.finditer(ptx))
    ends = [*(mark.start() for mark in marks[1:]), len(ptx)]
    return {mark.group(1): ptx[mark.start() : end] for mark, end in zip(marks, ends, strict=False)}


def tmem_columns(ptx: str) -> int:
    """TMEM columns that the kernel with the most of them allocates; 0 where nothing is allocated.

    The operand of ``tcgen05.alloc`` is an immediate or a register that one ``mov`` filled with one. Raises
    :class:`ValueError` if it is anything else: a number that cannot be read is not reported as 0.
    """
    return max((sum(_allocations(body)) for body in entries(ptx).values()), default=0)


def _allocations(body: str) -> list[int]:
    columns = []
    for operand in _ALLOC.findall(body):
        if operand.startswith("%"):
            values = set(re.findall(rf"\bmov\.[bus]32\s+{re.escape(operand)}\s*,\s*([^;]+);", body))
            if len(values) != 1:
                raise ValueError(f"tcgen05.alloc takes {operand}, which is not one constant")
            operand = values.pop().strip()
        try:
            columns.append(int(operand, 0))
        except ValueError:
            raise ValueError(f"tcgen05.alloc takes {operand}, which is not a constant") from None
    return columns


def source_lines(ptx: str, file_name: str = SOURCE_NAME) -> set[int]:
    """Lines of the file ``file_name`` that the line table of the PTX names, as a place or as an inlining site.

    Not those inside inline assembly, whose lines the compiler counts on from that of the call, into what follows it.
    """
    numbers = {number for number, path in _FILE.findall(ptx) if PurePosixPath(path).name == file_name}
    lines: set[int] = set()
    for file, line, at_file, at_line in _LOC.findall(_INLINE_ASM.sub("", ptx)):
        lines |= {int(line)} if file in numbers else set()
        lines |= {int(at_line)} if at_file in numbers else set()
    return lines


def untaken_lines(source: str, ptx: str, variant: Mapping[str, Any], file_name: str = SOURCE_NAME) -> list[int]:
    """Lines of branches that ``variant`` does not take and that the PTX names all the same, in order.

    A branch is an ``if const_expr(…)`` whose condition is decided by the flags of the variant and the constants of the
    emitted module alone; conditions on anything else are left out. The list of a right kernel is empty.
    """
    tree = ast.parse(source)
    known = {**_constants(tree), **variant}
    dead: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.If) or not _is_const_expr(node.test):
            continue
        assert isinstance(node.test, ast.Call)
        taken = _decided(node.test.args[0], known)
        if taken is None:
            continue
        for statement in node.orelse if taken else node.body:
            dead |= set(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return sorted(dead & source_lines(ptx, file_name))


def _is_const_expr(test: ast.expr) -> bool:
    return (
        isinstance(test, ast.Call)
        and len(test.args) == 1
        and (test.func.attr if isinstance(test.func, ast.Attribute) else getattr(test.func, "id", "")) == "const_expr"
    )


def _constants(tree: ast.Module) -> dict[str, Any]:
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return values


_ALLOWED_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Eq, ast.NotEq,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.Name, ast.Load, ast.Constant,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Tuple,
)  # fmt: skip


def _decided(test: ast.expr, known: Mapping[str, Any]) -> bool | None:
    """Whether ``test`` holds, or None if it depends on something that ``known`` does not name."""
    for node in ast.walk(test):
        if not isinstance(node, _ALLOWED_NODES) or (isinstance(node, ast.Name) and node.id not in known):
            return None
    return bool(eval(compile(ast.Expression(test), "<const_expr>", "eval"), {"__builtins__": {}}, dict(known)))
