"""The live view of a sweep: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from dsv4.generator.console import err
from dsv4.tuner.budget import Budget, since_best
from dsv4.tuner.sweep import Standing
from dsv4.tuner.tried import spelled

Say = Callable[[str], None]
Watch = Callable[[Standing], None]
HUNG = "no answer within"
"""How the failure of a kernel that was killed for its silence begins."""


@contextmanager
def watching(title: str, budget: Budget) -> Iterator[tuple[Say, Watch]]:
    """While open: ``say`` prints a line, ``watch`` shows how the sweep stands."""
    if not err.is_terminal:
        yield (lambda text: err.print(text, markup=False)), (lambda standing: None)
        return
    with Live(console=err, transient=True, refresh_per_second=4) as live:
        yield (
            lambda text: live.console.print(text, markup=False),
            lambda standing: live.update(table(title, budget, standing)),
        )


def table(title: str, budget: Budget, standing: Standing) -> Table:
    """How a sweep stands."""
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
    made.add_row("left", time_left(budget, standing))
    return made


def time_left(budget: Budget, standing: Standing) -> str:
    """What remains of the budget, whichever ends first, in words."""
    parts = []
    spent_s, done = standing.meter.spent_s, len(standing.tried)
    if budget.seconds is not None:
        parts.append(f"{max(0.0, budget.seconds - spent_s):.0f} s")
    if budget.configurations is not None:
        parts.append(f"{max(0, budget.configurations - done)} configurations")
    if budget.patience is not None:
        scores = [each.score_us for each in standing.tried]
        parts.append(f"{max(0, budget.patience - since_best(scores))} without a better one")
    return ", ".join(parts) or "the rest of the space"
