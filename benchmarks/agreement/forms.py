"""Opcodes written in short, grouped into probes by the widths of their operands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.agreement.probe import Probe
from benchmarks.agreement.tables import table

Forms = Mapping[str, str]
"""``{add,sub}.{s,u}32`` → ``32 32 32``: bits of the result (p: a predicate) and of the operands; n: the type's own."""


def expanded(text: str) -> list[str]:
    """``add.{s32,u32}`` → its two forms."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    pieces = match[1].split(",")
    return [form for piece in pieces for form in expanded(text[: match.start()] + piece + text[match.end() :])]


def _bits(token: str, opcode: str) -> str:
    if not token.isalpha() or token == "p":
        return token
    types = re.findall(r"(?:bf|[bsuf])(8|16|32|64)(?![x\w])", opcode)
    return types[0] if token == "n" else types[-1]


def form_probes(
    family: str, forms: Forms, operands: Mapping[int, np.ndarray], *, count: int, suffix: str = "", **options: object
) -> Iterator[Probe]:
    """A probe for each signature among ``forms``; ``operands`` maps bits to at least 4 · ``count`` values.

    Operand n of an instruction takes values n · count and following, rotated.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for text, widths in forms.items():
        for opcode in expanded(text):
            groups[tuple(_bits(token, opcode) for token in widths.split())].append(opcode)
    for (result, *sources), opcodes in groups.items():
        names = [f"{'abcd'[n]}{bits}" for n, bits in enumerate(sources)]
        arrays = {
            name: operands[int(bits)][n * count : (n + 1) * count]
            for n, (name, bits) in enumerate(zip(names, sources, strict=True))
        }
        rows = [(opcode, _statement(opcode, result, names)) for opcode in opcodes]
        out_bytes = 4 if result == "p" else max(2, int(result) // 8)
        label = f"{result}_from_{'_'.join(sources)}{suffix}"
        yield table(family, label, rows, arrays, out_bytes=out_bytes, **options)  # type: ignore[arg-type]


def _statement(opcode: str, result: str, names: list[str]) -> str:
    literal = ", 0xE8" if opcode == "lop3.b32" else ""
    if result == "p":
        return f"{opcode} p, {', '.join(names)}{literal}; selp.b32 d, 1, 0, p;"
    return f"{opcode} d, {', '.join(names)}{literal};"
