"""Findings as text for the engineer who wrote the kernel: where, with the source lines, and what to do.

A finding is one block; the warps of a hang are one table. The same as plain data for tools: `explain(...)` and
`as_json`. Nothing here runs anything: it reads source files, where they can be found.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsv4.emulator.hints import hint_of
from dsv4.emulator.machine import RawFinding
from dsv4.emulator.outcome import Finding
from dsv4.emulator.program import Program
from dsv4.emulator.sources import Sources

Commands = str | Callable[[Finding], str]
"""The command that reproduces findings, or a function that gives it for one."""
WAITS = ("nothing", "mbarrier", "named barrier", "cluster barrier", "group", "lanes", "tensor memory", "event")
"""What a warp of a hang waits for, in the numbers of `wait_kind` (enum WaitKind of core/emu.h)."""
WIDTH = 118
CELL = 60
"""Characters of a source line in a table, and of a kernel's name."""
_INDENT = " " * 9


@dataclass(frozen=True)
class Explained:
    """A finding with what is known besides: text of the source lines, the warp's role, a hint, a command."""

    finding: Finding
    configuration: str = ""
    source_text: str = ""
    other_source_text: str = ""
    role: str = ""
    hint: str = ""
    command: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data: the finding's own fields and those above, and what is waited for by name."""
        raw = asdict(self)
        waits = WAITS[self.finding.wait_kind] if self.finding.wait_kind else ""
        return {**raw.pop("finding"), **raw, "waits_for": waits}


def of_core(
    raw: RawFinding, program: Program, *, kernel: str = "", launch: int = 0, schedule: str = "",
    regions: Sequence[str] = (),
) -> Finding:  # fmt: skip
    """A finding of the core with opcode, PTX line and source line of its instructions and the names of its regions."""
    opcode, source, line = _place(program, raw.instruction)
    other_opcode, other_source, other_line = _place(program, raw.other)

    def name(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"argument {regions[number]}" if number < len(regions) else match[0]

    return Finding(
        raw.kind,
        re.sub(r"\bargument (\d+)\b", name, raw.message),
        kernel or program.name,
        launch,
        schedule,
        raw.ctaid if raw.cta >= 0 else None,
        raw.warp if raw.warp >= 0 else None,
        raw.lanes,
        raw.count,
        opcode,
        source,
        line,
        other_opcode,
        other_source,
        other_line,
        wait_kind=raw.wait_kind,
        wait_id=raw.wait_id,
        wait=raw.wait,
    )


def _place(program: Program, index: int) -> tuple[str, str, int]:
    if not 0 <= index < len(program.instructions):
        return "", "", 0
    instruction = program.lines[int(program.instructions["line"][index])]
    return instruction.opcode, str(instruction.location) if instruction.location.file else "", instruction.ptx_line


def explain(
    findings: Iterable[Finding], *, sources: Sources | None = None, configuration: str = "", command: Commands = "",
) -> list[Explained]:  # fmt: skip
    """Each finding with everything that can be said about it, in the same order."""
    found = sources or Sources()
    explained = []
    for finding in findings:
        explained.append(
            Explained(
                finding,
                configuration,
                found.text(*split(finding.source)),
                found.text(*split(finding.other_source)),
                found.role(*split(finding.source)),
                hint_of(finding.kind, finding.opcode, finding.other_opcode),
                command(finding) if callable(command) else command,
            )
        )
    return explained


def split(source: str) -> tuple[str, int]:
    """'file:line' in its two parts; ('', 0) where there is no line."""
    file, _, line = source.rpartition(":")
    return (file, int(line)) if file and line.isdigit() else ("", 0)


def text(
    findings: Iterable[Finding], *, sources: Sources | None = None, configuration: str = "", command: Commands = "",
) -> str:  # fmt: skip
    """All findings as blocks of plain text, an empty line between them; '' when there are none."""
    found = sources or Sources()
    return "\n\n".join(blocks(explain(findings, sources=found, configuration=configuration, command=command), found))


def blocks(explained: Sequence[Explained], sources: Sources | None = None) -> list[str]:
    """One block of text a finding; the waiting warps of one launch under one schedule share a block."""
    found = sources or Sources()
    made, done = [], set()
    for each in explained:
        if each.finding.kind != "hang":
            made.append(_block(each, found))
            continue
        key = _hang(each)
        if key not in done:
            done.add(key)
            made.append(_hang_block([other for other in explained if _hang(other) == key], found))
    return made


def _hang(each: Explained) -> tuple[str, int, str] | None:
    finding = each.finding
    return (finding.kernel, finding.launch, finding.schedule) if finding.kind == "hang" else None


# ------------------------------------------------------------------------------------------------------------- blocks


def _title(each: Explained) -> str:
    finding = each.finding
    inside = [each.configuration, f"schedule {finding.schedule}" if finding.schedule else ""]
    if finding.launch:
        inside.append(f"launch {finding.launch}")
    named = ", ".join(part for part in inside if part)
    return f"{finding.kind}: {_short(finding.kernel)}" + (f" ({named})" if named else "")


def _wrapped(label: str, said: str) -> str:
    first, rest = (f"  {label:<7}", _INDENT) if label else ("  ", "  ")
    return textwrap.fill(  # a path stays in one piece, hyphens and all
        said, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _source(label: str, source: str, line_text: str, ptx_line: int, opcode: str, sources: Sources) -> list[str]:
    if not source and not ptx_line:
        return []
    file, line = split(source)
    shown = f"{sources.shown(file)}:{line}" if file else "no source line"
    lines = [f"  {label:<7}{shown}" + (f"  {line_text}" if line_text else "")]
    if ptx_line:
        lines.append(f"{_INDENT}PTX {ptx_line}: {opcode}")
    return lines


def _warp(finding: Finding, role: str) -> str:
    if finding.cta is None:
        return ""
    warp = "" if finding.warp is None else f", warp {finding.warp}" + (f" ({role})" if role else "")
    return f"CTA {','.join(map(str, finding.cta))}{warp}"


def _block(each: Explained, sources: Sources) -> str:
    finding = each.finding
    lines = [_title(each), _wrapped("", finding.message)]
    lines += _source("here", finding.source, each.source_text, finding.ptx_line, finding.opcode, sources)
    lines += _source(
        "there", finding.other_source, each.other_source_text, finding.other_ptx_line, finding.other_opcode, sources
    )
    where = [_warp(finding, each.role)]
    if finding.lanes:
        where.append(f"lanes 0x{finding.lanes:08x}")
    if finding.count > 1:
        where.append(f"seen {finding.count} times")
    if any(where):
        lines.append(_wrapped("where", ", ".join(part for part in where if part)))
    return "\n".join([*lines, *_closing(each)])


def _closing(each: Explained) -> list[str]:
    lines = [_wrapped("hint", each.hint)] if each.hint else []
    return [*lines, f"  again  {each.command}"] if each.command else lines


def waited_for(finding: Finding) -> str:
    """What a warp of a hang waits for, from the numbers that the core gives."""
    wait = (*finding.wait, *(0,) * 6)[:6]
    if finding.wait_kind == 1:
        address, parity, phase, count, pending, missing = wait
        said = f"mbarrier 0x{address:x}, parity {parity}: phase {phase} is open, "
        said += f"{pending} of {count} arrivals missing" if pending else f"all {count} arrivals there"
        return said + (
            f", {missing} bytes missing" if missing > 0 else f", {-missing} bytes too many" if missing else ""
        )
    if finding.wait_kind == 2:
        return f"named barrier {finding.wait_id}: {wait[1]} of {wait[0]} threads have arrived"
    return finding.message.removeprefix("waits for ").removeprefix("waits at ")


def _hang_block(waiting: Sequence[Explained], sources: Sources) -> str:
    """The table of a hang: who waits where, for what, and where the last arrival came from."""
    first = waiting[0]
    rows = [("CTA", "warp", "waits at", "for")]
    arrivals: dict[str, None] = {}
    for each in waiting:
        finding = each.finding
        file, line = split(finding.source)
        at = f"{sources.shown(file)}:{line}  {_short(each.source_text)}".rstrip() if file else f"PTX {finding.ptx_line}"
        warp = "" if finding.warp is None else str(finding.warp) + (f" {each.role}" if each.role else "")
        if finding.count > 1:
            warp += f" (and {finding.count - 1} more)"
        cta = ",".join(map(str, finding.cta)) if finding.cta is not None else ""
        rows.append((cta, warp, at, waited_for(finding)))
        if finding.wait_kind == 1 and (finding.other_source or finding.other_ptx_line):
            file, line = split(finding.other_source)
            place = f"{sources.shown(file)}:{line}  {each.other_source_text}".rstrip() if file else "no source line"
            arrivals[
                f"the last arrival on mbarrier 0x{finding.wait[0]:x}: {place} "
                f"(PTX {finding.other_ptx_line}: {finding.other_opcode})"
            ] = None
    lines = [_title(first), "  nobody can go on:", *(f"  {line}" for line in table(rows))]
    lines += [_wrapped("", said) for said in arrivals]
    return "\n".join([*lines, *_closing(first)])


def _short(line_text: str) -> str:
    return line_text if len(line_text) <= CELL else line_text[: CELL - 1] + "…"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines, two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
