"""What every `dsv4-gen` command shares: where output goes, how errors end, how options are read.

Standard output carries the result (a table, or with ``--json`` exactly one object); everything that a person wants to
see meanwhile (progress, notes) goes to standard error. An error is one line and exit code 2 (usage, bad spec) or 1
(failed check); its traceback is shown only with ``--debug``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

PLAIN_WIDTH = 150  # of tables that go to a file or a pipe, where no terminal says how wide it is
out = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class UsageError(Exception):
    """The command line asks for something that does not exist; the text names it and what would be valid."""


class CheckFailed(Exception):
    """A check ran and found something; the text says what. Exit code 1."""


def parse_assignments(option: str, pairs: list[str]) -> dict[str, bool | int | float | str]:
    """``["tile_m=128", "causal=true"]`` as a dict with booleans and numbers read as such.

    Raises:
        UsageError: a pair has no ``=`` or no name.
    """
    values: dict[str, bool | int | float | str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{option}: found '{pair}'; valid: NAME=VALUE, for example {option} tile_m=128")
        values[name] = parse_value(text)
    return values


def parse_sizes(option: str, pairs: list[str]) -> dict[str, int]:
    """``["D=128"]`` as a dict of whole numbers. Raises UsageError for anything else."""
    sizes: dict[str, int] = {}
    for name, size in parse_assignments(option, pairs).items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise UsageError(f"{option}: found '{name}={size}'; valid: a whole number")
        sizes[name] = size
    return sizes


def parse_value(text: str) -> bool | int | float | str:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(table: Table) -> None:
    out.print(table)


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Any]:
    """A progress bar on standard error; yields ``advance(description)``. Plain lines where there is no terminal."""
    if not err.is_terminal:
        done = 0

        def advance_plainly(description: str) -> None:
            nonlocal done
            done += 1
            err.print(f"{label} {done}/{total}: {description}")

        yield advance_plainly
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=total)

        def advance(description: str) -> None:
            bar.update(task, advance=1, description=f"{label}: {description}")

        yield advance
