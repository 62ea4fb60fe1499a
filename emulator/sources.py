"""The kernel's source behind a PTX line: its text, the function that it stands in, and what the warp there is for."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).parents[2]
_WARP_NAMES = ("warp", "warp_idx", "warp_id", "warp_index")  # variables that hold the warp's own number
_ROLE_SUFFIXES = ("_warp_ids", "_warp_id", "_warp_idx", "_warp", "_idx", "_id")


class Sources:
    """Looks source files up. PTX names them absolutely, or relative to one of ``roots`` (an artifact's folder, say).

    The working directory and the folder that holds the ``dsv4`` package are always tried. What cannot be found or read
    has no text and no role; nothing is raised.
    """

    def __init__(self, roots: Sequence[Path | str] = ()) -> None:
        self._roots = (*map(Path, roots), Path.cwd(), _PACKAGE_ROOT)

    def path(self, file: str) -> Path | None:
        """The file, or None where it does not exist."""
        if not file:
            return None
        found = (root / file for root in self._roots)  # an absolute name stays as it is
        return next((path for path in found if path.is_file()), None)

    def shown(self, file: str) -> str:
        """The file's name for people: relative to the working directory where it lies below it."""
        path = Path(file)
        if path.is_absolute() and path.is_relative_to(Path.cwd()):
            return str(path.relative_to(Path.cwd()))
        return file

    def text(self, file: str, line: int) -> str:
        """The line (counted from 1) without its indentation, or ''."""
        lines = _lines(self.path(file))
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""

    def function(self, file: str, line: int) -> str:
        """The name of the innermost function around the line, or ''."""
        function = _function(_chain(_tree(self.path(file)), line))
        return function.name if function else ""

    def role(self, file: str, line: int) -> str:
        """What a warp does that executes this line: the function's name or, in the kernel itself, the warp's ``if``.

        A branch ``if warp == LOAD_WARP`` (or ``self.load_warp_id``) gives ``load``; other tests that name a warp are
        given as they stand. '' where neither says anything.
        """
        chain = _chain(_tree(self.path(file)), line)
        function = _function(chain)
        if function is None:
            return ""
        if not any(_last_name(each).endswith("kernel") for each in function.decorator_list):
            return function.name
        tests = [node.test for node in chain if isinstance(node, ast.If) and _holds(node.body, line)]
        return next((_role_of(test) for test in reversed(tests) if "warp" in ast.unparse(test).lower()), "")


@functools.lru_cache(256)
def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


@functools.lru_cache(64)
def _tree(path: Path | None) -> ast.Module | None:
    try:
        return ast.parse("\n".join(_lines(path)))
    except (SyntaxError, ValueError):
        return None


def _holds(nodes: Sequence[ast.AST], line: int) -> bool:
    return any(getattr(n, "lineno", 0) <= line <= (getattr(n, "end_lineno", None) or 0) for n in nodes)


def _chain(tree: ast.Module | None, line: int) -> list[ast.AST]:
    """The nodes around a line, the outermost first."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if _holds([child], line):
                yield child
                yield from walk(child)
                return
            if not hasattr(child, "lineno"):
                yield from walk(child)

    return list(walk(tree)) if tree is not None else []


def _function(chain: Sequence[ast.AST]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    return next((n for n in reversed(chain) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)), None)


def _last_name(node: ast.AST) -> str:
    """The last name of a dotted expression, of what a call calls; '' for anything else."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _role_of(test: ast.expr) -> str:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        test = next((value for value in test.values if "warp" in ast.unparse(value).lower()), test)
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        sides = [_last_name(side).lower() for side in (test.comparators[0], test.left)]
        name = next((side for side in sides if side and side not in _WARP_NAMES), "")
        for suffix in _ROLE_SUFFIXES:
            if name.endswith(suffix) and name != suffix:
                return name.removesuffix(suffix)
        if name:
            return name
    return ast.unparse(test)
