"""Lessons that a text can be held to: checks of templates and of emitted sources that need no compiler.

``template`` – a template is mostly code: at most 40 % of its lines are Jinja control.
``unrolled-pipeline`` – a Python-level loop around pipeline operations unrolls at trace time and compile time explodes.
``tmem-store-type`` – a 32x32b TMEM store of 16-bit elements once gave an illegal access: P goes through a Float32 view.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CONTROL_FRACTION = 0.40
MAX_UNROLLED_TRIPS = 16
_CONTROL = re.compile(r"^\s*(\{%.*%\}\s*)+$")
_BLOCK = re.compile(r"\{%.*?%\}", re.DOTALL)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_PIPELINE_CALLS = frozenset(
    (
        *("producer_acquire", "producer_commit", "producer_tail", "producer_try_acquire", "acquire_and_advance"),
        *("consumer_wait", "consumer_release", "consumer_try_wait", "wait_and_advance"),
        *("mbarrier_wait", "mbarrier_try_wait", "mbarrier_arrive", "mbarrier_arrive_and_expect_tx"),
    )
)
_STORE_ATOM = re.compile(r"St32x32b\w*\Z")


@dataclass(frozen=True)
class Finding:
    """``rule`` broken at ``line`` of a file, and what to do about it."""

    rule: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.rule}: {self.message}"


def control_fraction(template: str) -> float:
    """Share of the non-empty lines of a template that are Jinja control and nothing else. Comments do not count."""
    text = _COMMENT.sub("", template)
    spread = _BLOCK.sub(lambda block: "\n".join("{%%}" for _ in block.group().split("\n")), text)
    lines = [line for line in spread.splitlines() if line.strip()]
    return sum(bool(_CONTROL.match(line)) for line in lines) / max(len(lines), 1)


def lint_template(template: str) -> list[Finding]:
    """Findings in the text of a template."""
    share = control_fraction(template)
    if share <= MAX_CONTROL_FRACTION:
        return []
    message = f"{share:.0%} of the lines are Jinja control (at most {MAX_CONTROL_FRACTION:.0%}); move logic to device/"
    return [Finding("template", 1, message)]


def lint_source(text: str) -> list[Finding]:
    """Findings in an emitted module or in a module of ``generator/device``, by line."""
    tree = ast.parse(text)
    findings = [*_unrolled_pipelines(tree), *_tmem_stores(tree)]
    return sorted(findings, key=lambda finding: finding.line)


# ---------------------------------------------------------------------------------------------------------------------
# Lesson 14: Python loops around pipeline operations


def _unrolled_pipelines(tree: ast.Module) -> Iterator[Finding]:
    constants = _integers(tree)
    for function, loop in _loops(tree):
        trips = _python_trips(loop.iter, constants, traced=_is_traced(function))
        if trips is None or trips <= MAX_UNROLLED_TRIPS:
            continue
        calls = sorted({name for node in ast.walk(loop) if (name := _called(node)) in _PIPELINE_CALLS})
        if calls:
            times = f"{trips:g} times" if trips != float("inf") else "at trace time"
            message = f"{', '.join(calls)} in a loop that is unrolled {times}; use cutlass.range(…)"
            yield Finding("unrolled-pipeline", loop.lineno, message)


def _loops(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | None, ast.For]]:
    def walk(node: ast.AST, function: ast.FunctionDef | None) -> Iterator[tuple[ast.FunctionDef | None, ast.For]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.For):
                yield function, child
            inner = child if isinstance(child, ast.FunctionDef) else function
            yield from walk(child, inner)

    return walk(tree, None)


def _is_traced(function: ast.FunctionDef | None) -> bool:
    """Whether the compiler rewrites this function's loops; in an undecorated helper Python runs them."""
    decorators = function.decorator_list if function else []
    names = [item.func if isinstance(item, ast.Call) else item for item in decorators]
    return any(getattr(name, "attr", getattr(name, "id", "")) in ("jit", "kernel") for name in names)


def _python_trips(iterable: ast.expr, constants: dict[str, int], *, traced: bool) -> float | None:
    """How often Python itself runs the loop, or None for a loop of the device.

    A ``range_constexpr`` whose bound is a parameter counts as None too: bounds of that kind are stages and tiles of a
    configuration, and the compile-time limit catches the others. An undecorated loop of unknown length is infinite.
    """
    if isinstance(iterable, ast.List | ast.Tuple):
        return len(iterable.elts)
    name = _called(iterable)
    if isinstance(iterable, ast.Call) and name in ("range", "range_constexpr"):
        device_range = isinstance(iterable.func, ast.Attribute) and name == "range"  # cutlass.range
        unrolled = any(
            word.arg == "unroll_full" and isinstance(word.value, ast.Constant) and word.value.value
            for word in iterable.keywords
        )
        if name == "range" and not unrolled and (traced or device_range):
            return None
        bounds = [_integer(argument, constants) for argument in iterable.args]
        if not bounds or any(bound is None for bound in bounds):
            return None if name == "range_constexpr" or unrolled else float("inf")
        return len(range(*(bound for bound in bounds if bound is not None)))
    return None if traced else float("inf")


def _integers(tree: ast.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _integer(node.value, found)
            if value is not None:
                found[node.targets[0].id] = value
    return found


def _integer(node: ast.expr, constants: dict[str, int]) -> int | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.BinOp):
        left, right = _integer(node.left, constants), _integer(node.right, constants)
        if left is not None and right is not None:
            match node.op:
                case ast.Add():
                    return left + right
                case ast.Sub():
                    return left - right
                case ast.Mult():
                    return left * right
                case ast.FloorDiv() if right:
                    return left // right
    return None


def _called(node: ast.AST) -> str:
    """The last name of what a call calls, ``""`` for anything that is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


# ---------------------------------------------------------------------------------------------------------------------
# Lesson 9: element types of TMEM stores


def _tmem_stores(tree: ast.Module) -> Iterator[Finding]:
    assigned = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def resolved(node: ast.expr) -> ast.expr:
        for _ in range(8):  # names of names; a cycle ends too
            if not (isinstance(node, ast.Name) and node.id in assigned):
                break
            node = assigned[node.id]
        return node

    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _called(node) != "make_copy_atom" or len(node.args) < 2:
            continue
        if not _STORE_ATOM.match(_called(resolved(node.args[0]))):
            continue
        dtype = resolved(node.args[1])
        name = getattr(dtype, "attr", getattr(dtype, "id", ast.unparse(dtype)))
        if name != "Float32":
            message = f"a 32x32b TMEM store of {name}; store through a Float32 view of the registers"
            yield Finding("tmem-store-type", node.lineno, message)
