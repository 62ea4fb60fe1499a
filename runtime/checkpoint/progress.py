"""How far loading has come, on a terminal; elsewhere nothing is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Told of what is being loaded: ``group`` when one begins, ``advance`` of bytes, from any thread."""

    def group(self, name: str) -> None: ...

    def advance(self, nbytes: int) -> None: ...


class Silent:
    """Shows nothing."""

    def group(self, name: str) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def group(self, name: str) -> None:
        self._bar.update(self._task, description=f"loading {name}")

    def advance(self, nbytes: int) -> None:
        self._bar.advance(self._task, nbytes)


@contextmanager
def shown(total_bytes: int) -> Iterator[Progress]:
    """A bar on stderr where that is a terminal and ``rich`` is installed, else ``Silent``."""
    if not sys.stderr.isatty():
        yield Silent()
        return
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        yield Silent()
        return
    columns = (
        progress.TextColumn("{task.description:<18}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task("loading", total=total_bytes))
