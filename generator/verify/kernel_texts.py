"""A PTX text that holds several kernels, and one of them changed: what has to be read anew is that one alone."""

from __future__ import annotations

import re

_ENTRY = re.compile(r"^[^\S\n]*(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)", re.MULTILINE)
_BRACE = re.compile(r"[{}]|//[^\n]*")


def entry_spans(text: str) -> dict[str, tuple[int, int]]:
    """Where each kernel of the text begins and ends, in order: from its directives to the brace that closes it."""
    spans = {}
    for found in _ENTRY.finditer(text):
        depth = 0
        for brace in _BRACE.finditer(text, found.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if brace[0] == "}" and depth == 0:
                spans[found[1]] = (found.start(), brace.end())
                break
    return spans


def kernel_at(text: str, place: int) -> str:
    """The kernel that the offset ``place`` lies in. Raises ValueError for a place between kernels."""
    for name, (start, end) in entry_spans(text).items():
        if start <= place < end:
            return name
    raise ValueError(f"{place}: no kernel of the PTX lies there")


def alone(text: str, kernel: str) -> str:
    """The text without the other kernels; lines keep their numbers."""
    parts, at = [], 0
    for name, (start, end) in entry_spans(text).items():
        if name != kernel:
            parts += [text[at:start], "\n" * text.count("\n", start, end)]
            at = end
    return "".join([*parts, text[at:]])
