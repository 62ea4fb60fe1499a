"""The table from complete opcode text to the rule that lowers it. An opcode that no rule matches whole is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv4.emulator.lower.context import Lowering

Rule = Callable[["Lowering", "re.Match[str]"], None]
_RULES: list[tuple[re.Pattern[str], Rule]] = []


def rule(pattern: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the opcodes that `pattern` matches from end to end."""

    def register(function: Rule) -> Rule:
        _RULES.append((re.compile(pattern), function))
        return function

    return register


@cache
def find_rule(opcode: str) -> tuple[Rule, re.Match[str]] | None:
    """The rule of an opcode, with the match that holds its suffixes; None when the opcode is not known."""
    for pattern, function in _RULES:
        match = pattern.fullmatch(opcode)
        if match is not None:
            return function, match
    return None
