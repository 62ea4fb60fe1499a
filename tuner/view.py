"""The live view of sweeps: a table for each on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dsv4.generator.console import err
from dsv4.tuner.budget import Budget, since_best
from dsv4.tuner.sweep import Standing
from dsv4.tuner.tried import spelled

Say = Callable[[str], None]
Watch = Callable[[Standing], None]
HUNG = "no answer within"
"""How the failure of a kernel that was killed for its silence begins."""


class Board:
    """The live view of as many sweeps as are going on: a table for each, below the lines that they print. Use it as a
    context; elsewhere than on a terminal there are lines only."""

    def __init__(self) -> None:
        self._tables: dict[str, Callable[[], Table]] = {}
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if err.is_terminal:
            self._live = Live(console=err, transient=True, refresh_per_second=4, get_renderable=self._current)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _current(self) -> Group:  # made anew at each refresh: time goes on while a batch is measured
        return Group(*(make() for make in tuple(self._tables.values())))

    @contextmanager
    def watching(self, title: str, budget: Budget) -> Iterator[tuple[Say, Watch]]:
        """While open: ``say`` prints a line, ``watch`` shows how the sweep ``title`` stands."""
        seen: list[Standing] = []
        """The first and the newest."""

        def watch(standing: Standing) -> None:
            seen[:] = [seen[0] if seen else standing, standing]

        def current() -> Table:
            return table(title, budget, seen[-1], before=len(seen[0].tried)) if seen else Table(title=title)

        self._tables[title] = current
        try:
            yield (lambda text: err.print(text, markup=False)), watch
        finally:
            self._tables.pop(title, None)


@contextmanager
def watching(title: str, budget: Budget) -> Iterator[tuple[Say, Watch]]:
    """The view of one sweep (``Board.watching``)."""
    with Board() as board, board.watching(title, budget) as pair:
        yield pair


def table(title: str, budget: Budget, standing: Standing, before: int = 0) -> Table:
    """How a sweep stands; ``before`` of its outcomes were there when this run began."""
    tried = standing.tried
    passed = [each for each in tried if each.score_us is not None and not each.is_slow]
    failed = [each.failure for each in tried if each.failure]
    hung = sum(HUNG in why for why in failed)
    best = min(passed, key=lambda each: each.score_us or 0.0, default=None)
    made = Table(title=title, show_header=False)
    made.add_row("now", standing.doing)
    made.add_row("measured", str(len(passed)))
    made.add_row("given up as slow", str(sum(each.is_slow for each in tried)))
    made.add_row("failed", str(len(failed) - hung))
    made.add_row("hung", str(hung))
    made.add_row("refused by constraints", f"{standing.refused:,}")
    made.add_row("default", f"{standing.default_us:.2f} µs")
    if best is not None and best.score_us is not None:
        gain = standing.default_us / best.score_us
        made.add_row("best so far", f"{best.score_us:.2f} µs, {gain:.3f}× the default's speed: {spelled(best.config)}")
    if (share := spent_share(budget, standing)) is not None:
        made.add_row("progress", ProgressBar(total=1.0, completed=share, width=40))
    made.add_row("left", time_left(budget, standing, before))
    return made


def spent_share(budget: Budget, standing: Standing) -> float | None:
    """Of the part of the budget that is spent the most, from 0 to 1; None for the whole space."""
    shares = []
    if budget.seconds is not None:
        shares.append(standing.meter.spent_s / budget.seconds)
    if budget.configurations is not None:
        shares.append(len(standing.tried) / budget.configurations)
    return min(1.0, max(shares)) if shares else None


def time_left(budget: Budget, standing: Standing, before: int = 0) -> str:
    """What remains of the budget, whichever ends first, in words; for a number of configurations also how long they
    take at the pace of this run."""
    parts = []
    spent_s, done = standing.meter.spent_s, len(standing.tried)
    if budget.seconds is not None:
        parts.append(f"{max(0.0, budget.seconds - spent_s):.0f} s")
    if budget.configurations is not None:
        left = max(0, budget.configurations - done)
        pace = f" (about {left * spent_s / (done - before):.0f} s)" if left and done > before else ""
        parts.append(f"{left} configurations{pace}")
    if budget.patience is not None:
        scores = [each.score_us for each in standing.tried]
        parts.append(f"{max(0, budget.patience - since_best(scores))} without a better one")
    return ", ".join(parts) or "the rest of the space"
