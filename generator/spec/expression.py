"""The specs' own expression language: arithmetic on named numbers, and nothing else.

``tile_m * D * 2``, ``ceil_div(Sk, tile_n)``, ``combine != 'cluster' or splits <= 8``, ``4 if causal else 2``.

Allowed: names, integers, decimals, true/false, quoted words (compared with ``==``, ``!=`` or ``in (…)`` only),
``+ - * // / %``, comparisons (also chained), ``and or not``, ``x if c else y`` and calls of the functions in
``FUNCTIONS``. Everything else (attributes, indexing, powers, other calls, lambdas, comprehensions, f-strings, names
with leading underscores) is refused when the spec is read. ``$model.hidden`` names a field of the model spec.
The text is never handed to ``eval``: it is parsed once with ``ast`` and walked.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dsv4.generator.spec.errors import Invalid, Words

Value = bool | int | float | str
MAX_LENGTH = 400
MAX_MAGNITUDE = 1 << 62
MODEL_PREFIX = "model__"
_MODEL = re.compile(r"\$model\.([A-Za-z][A-Za-z0-9_]*)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def pow2ceil(a: int) -> int:
    """The smallest power of two that is at least ``a`` (1 for a ≤ 1)."""
    return 1 if a <= 1 else 1 << (a - 1).bit_length()


FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {  # name: (function, fewest, most arguments)
    "min": (min, 2, 8),
    "max": (max, 2, 8),
    "ceil_div": (ceil_div, 2, 2),
    "round_up": (round_up, 2, 2),
    "pow2ceil": (pow2ceil, 1, 1),
}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_VALID = "names, numbers, 'words', + - * // / %, comparisons, and/or/not, x if c else y, " + ", ".join(FUNCTIONS)
_CONSTANTS: dict[str, bool] = {"true": True, "false": False}


class Unevaluable(ValueError):
    """An expression whose operands do not fit (division by zero, a word where a number belongs)."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression. ``names`` are its free names, in order; a model field is ``model__hidden`` in them.

    ``words`` pairs each name with the quoted words that it is compared with, so that a misspelt word can be refused.
    """

    text: str
    names: tuple[str, ...]
    words: tuple[tuple[str, str], ...] = field(repr=False)
    _tree: ast.expr = field(repr=False, compare=False)

    def __call__(self, scope: Mapping[str, Value]) -> Value:
        """The value in ``scope``. Raises Unevaluable, and KeyError for a name that is not in ``scope``."""
        try:
            value = _value(self._tree, scope)
        except ZeroDivisionError:
            raise Unevaluable(f"{self.text}: division by zero") from None
        except OverflowError:
            raise Unevaluable(f"{self.text}: a number out of range") from None
        except TypeError:
            raise Unevaluable(f"{self.text}: a word where a number belongs") from None
        if isinstance(value, int | float) and not abs(value) < MAX_MAGNITUDE and not self._is_count(value):
            raise Unevaluable(f"{self.text}: {value} is out of range")
        return value

    @staticmethod
    def _is_count(value: float) -> bool:
        return isinstance(value, float) and abs(value) < 1e30  # work counts in FLOP may exceed an int64

    def integer(self, scope: Mapping[str, Value]) -> int:
        """The value, which must be a whole number (``true`` is not one)."""
        value = self(scope)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise Unevaluable(f"{self.text} = {value!r} is not a whole number")
        return int(value)

    def chosen(self, scope: Mapping[str, Value]) -> Expression:
        """``x`` of ``x if c else y`` where ``scope`` decides ``c`` that way, else ``y``; another expression itself."""
        tree = self._tree
        if not isinstance(tree, ast.IfExp):
            return self
        condition = parse_expression(ast.unparse(tree.test))
        if not all(name in scope for name in condition.names):
            return self
        return parse_expression(ast.unparse(tree.body if condition(scope) else tree.orelse)).chosen(scope)

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=8192, typed=True)  # 1 and true are equal and not the same
def parse_expression(text: str | int | float | bool) -> Expression:
    """``text`` parsed. Raises Invalid (found, valid) for anything outside the language."""
    if isinstance(text, bool | int | float):
        return Expression(str(text), (), (), ast.Constant(text))
    if len(text) > MAX_LENGTH:
        raise Invalid(Words(f"{len(text)} characters"), f"an expression of at most {MAX_LENGTH} characters")
    source = _MODEL.sub(lambda match: MODEL_PREFIX + match[1], text)
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Invalid(text, f"an expression of {_VALID}") from None
    names: dict[str, None] = {}
    words: list[tuple[str, str]] = []
    try:
        _check(tree, text, names, words)
    except RecursionError:
        raise Invalid(text, "an expression that is less deeply nested") from None
    return Expression(text, tuple(names), tuple(words), tree)


def _check(node: ast.expr, text: str, names: dict[str, None], words: list[tuple[str, str]]) -> None:
    """Refuses every node outside the language; collects names and the words they are compared with."""

    def refuse(found: str, valid: str = _VALID) -> None:
        raise Invalid(Words(f"{found} in {text!r}"), f"an expression of {valid}")

    match node:
        case ast.Constant(value=bool() | int() | float()):
            if isinstance(node.value, int) and abs(node.value) >= MAX_MAGNITUDE:
                refuse("a number out of range")
        case ast.Constant(value=str()):
            refuse("a word outside a comparison")
        case ast.Name():
            if not _NAME.match(node.id):
                refuse(f"the name {node.id}", "names that start with a letter")
            if node.id not in _CONSTANTS:
                names[node.id] = None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not()):
            _check(node.operand, text, names, words)
        case ast.BinOp():
            if type(node.op) not in _BINARY:
                refuse(f"the operator {type(node.op).__name__}")
            _check(node.left, text, names, words)
            _check(node.right, text, names, words)
        case ast.BoolOp():
            for part in node.values:
                _check(part, text, names, words)
        case ast.IfExp():
            for part in (node.test, node.body, node.orelse):
                _check(part, text, names, words)
        case ast.Compare():
            _check_compare(node, text, names, words, refuse)
        case ast.Call():
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
                refuse("a call", f"calls of {', '.join(FUNCTIONS)} only")
            assert isinstance(node.func, ast.Name)
            _, fewest, most = FUNCTIONS[node.func.id]
            if not fewest <= len(node.args) <= most or any(isinstance(arg, ast.Starred) for arg in node.args):
                refuse(f"{len(node.args)} arguments of {node.func.id}", f"{fewest} to {most} arguments")
            for part in node.args:
                _check(part, text, names, words)
        case _:
            refuse(f"{type(node).__name__.lower()} syntax")


def _check_compare(
    node: ast.Compare, text: str, names: dict[str, None], words: list[tuple[str, str]], refuse: Callable[..., None]
) -> None:
    sides = [node.left, *node.comparators]
    for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
        if type(op) not in _COMPARE:
            refuse(f"the comparison {type(op).__name__}")
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple) or not all(isinstance(item, ast.Constant) for item in right.elts):
                refuse("a membership test of something else than (a, b, …)")
            assert isinstance(right, ast.Tuple)
            options = [item.value for item in right.elts if isinstance(item, ast.Constant)]
        else:
            options = [side.value for side in (left, right) if isinstance(side, ast.Constant)]
        listed = [option for option in options if isinstance(option, str)]
        if listed and not isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn):
            refuse("an order of words")
        for option in listed:
            if not _NAME.match(option):
                refuse(f"the word {option!r}", "words of letters, digits and _")
            words += [(side.id, option) for side in (left, right) if isinstance(side, ast.Name)]
    for side in sides:
        if not isinstance(side, ast.Tuple) and not (isinstance(side, ast.Constant) and isinstance(side.value, str)):
            _check(side, text, names, words)


def _value(node: ast.expr, scope: Mapping[str, Value]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _CONSTANTS[node.id] if node.id in _CONSTANTS else scope[node.id]
        case ast.UnaryOp():
            operand = _value(node.operand, scope)
            return (
                not operand if isinstance(node.op, ast.Not) else -operand if isinstance(node.op, ast.USub) else operand
            )
        case ast.BinOp():
            left, right = _value(node.left, scope), _value(node.right, scope)
            if isinstance(left, str) or isinstance(right, str):
                raise TypeError
            return _BINARY[type(node.op)](left, right)
        case ast.BoolOp():
            results = (_value(part, scope) for part in node.values)
            return all(results) if isinstance(node.op, ast.And) else any(results)
        case ast.IfExp():
            return _value(node.body if _value(node.test, scope) else node.orelse, scope)
        case ast.Compare():
            left = _value(node.left, scope)
            for op, side in zip(node.ops, node.comparators, strict=True):
                right = _value(side, scope)
                if not _COMPARE[type(op)](left, right):
                    return False
                left = right
            return True
        case ast.Tuple():
            return tuple(_value(item, scope) for item in node.elts)
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS[name][0](*(_value(part, scope) for part in node.args))
    raise AssertionError(type(node))  # _check admits nothing else
