"""Hold committed results against their aims: ``python -m benchmarks.judge``.

Each row of the newest result of each operator gets what it misses and the reason from ``benchmarks/shortfalls.yaml``
(see ``benchmarks.harness.aims``); what was measured stays as it is. Without --write the files are compared with what
would be written. Exit code: 0 all is in step and explained, 1 a file is stale or a row has no reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.aims import JUDGED, read_reasons, with_verdicts
from benchmarks.harness.result import RESULTS, replace_text
from benchmarks.readme_tables import newest


def judged(folder: Path) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """(file, its content, its content as it is to be) of the newest result of each judged operator and device."""
    reasons = read_reasons()
    for op in sorted(JUDGED):
        for name, result in newest(folder, op):
            yield folder / name, result, with_verdicts(result, reasons)


def unexplained(result: dict[str, Any]) -> list[str]:
    """One line for each miss of a row that has no reason."""
    return [
        f"{result['op']} {case['label']}: {short['aim']} ({short['mode']}): found {short['found']} {short['unit']}, "
        f"wanted {short['wanted']} ({short['against']})"
        for case in result["cases"]
        for short in case.get("short", ())
        if not short["reason"]
    ]


def main(
    write: Annotated[bool, typer.Option("--write", help="Write the verdicts into the files.")] = False,
    folder: Annotated[Path, typer.Option("--results", help="The folder of dated results.")] = RESULTS,
) -> None:
    """Say which rows of the newest results fall short, and whether each has a reason."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table("operator", "rows", "short", "of those, met with pdl", "without a reason", box=None)
    wrong = False
    for path, found, wanted in judged(folder):
        shorts = [case["short"] for case in wanted["cases"] if case["short"]]
        open_ = unexplained(wanted)
        met = sum(all(each["met_with_pdl"] for each in misses) for misses in shorts)
        table.add_row(*map(str, (wanted["op"], len(wanted["cases"]), len(shorts), met, len(open_))))
        for line in open_:
            out.print(line)
        if write and found != wanted:
            replace_text(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        elif found != wanted:
            out.print(f"{path.name}: its verdicts are not those of today; valid: python -m benchmarks.judge --write")
        wrong = wrong or bool(open_) or (found != wanted and not write)
    out.print(table)
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
