"""The live view: every figure of the standing, and a time that goes on by itself."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from dsv4.tuner import view
from dsv4.tuner.budget import Budget, Meter
from dsv4.tuner.sweep import Standing
from dsv4.tuner.tried import Tried

TRIED = [
    Tried({"tile": 1}, 8.0), Tried({"tile": 2}, 4.0), Tried({"tile": 3}, 9.0, is_slow=True),
    Tried({"tile": 4}, None, "T=7: y is off"), Tried({"tile": 5}, None, "no answer within 60 s: killed"),
]  # fmt: skip


def standing(budget: Budget, spent_s: float, tried=TRIED) -> Standing:
    meter = Meter(budget)
    meter._began -= spent_s
    return Standing(meter, 8.0, tried, "8 configurations, 4 compiling", 1234)


def shown(budget: Budget, spent_s: float, before: int = 0) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(view.table("fmha on sm_90a", budget, standing(budget, spent_s), before))
    return [" ".join(line.replace("│", " ").split()) for line in console.file.getvalue().splitlines()]


def test_every_outcome_has_its_row():
    lines = shown(Budget(configurations=20, seconds=600), 100.0)
    for row in (
        "now 8 configurations, 4 compiling", "measured 2", "given up as slow 1", "failed 1", "hung 1",
        "refused by constraints 1,234", "default 8.00 µs", "best so far 4.00 µs, 2.000× the default's speed: tile=2",
        "left 500 s, 15 configurations (about 300 s)",
    ):  # fmt: skip
        assert row in lines, row


@pytest.mark.parametrize(
    ("budget", "spent_s", "share", "left"),
    [
        (Budget(configurations=10), 50.0, 0.5, "5 configurations (about 50 s)"),
        (Budget(seconds=200), 50.0, 0.25, "150 s"),
        (Budget(configurations=10, seconds=60), 50.0, 50 / 60, "10 s, 5 configurations (about 50 s)"),
        (Budget(patience=9), 50.0, None, "6 without a better one"),
        (Budget(), 50.0, None, "the rest of the space"),
    ],
)
def test_what_is_left_and_how_far_it_is(budget, spent_s, share, left):
    now = standing(budget, spent_s)
    assert view.spent_share(budget, now) == (None if share is None else pytest.approx(share, abs=0.01))
    assert view.time_left(budget, now) == left


def test_the_pace_is_that_of_this_run():
    now = standing(Budget(configurations=10), 50.0)
    assert view.time_left(Budget(configurations=10), now, before=4) == "5 configurations (about 250 s)"
    assert view.time_left(Budget(configurations=10), now, before=5) == "5 configurations"


def test_on_a_terminal_the_time_goes_on_while_nothing_is_reported(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(view, "err", Console(file=stream, force_terminal=True, color_system=None, width=100))
    budget = Budget(seconds=1000)
    with view.watching("fmha on sm_90a", budget) as (say, watch):
        watch(standing(budget, 100.0))
        say("1: tile=1: 8.00 µs")
        deadline = time.monotonic() + 20
        while not all(f"{left} s" in stream.getvalue() for left in (899, 898)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "1: tile=1: 8.00 µs" in stream.getvalue() and "898 s" in stream.getvalue()


def test_elsewhere_there_are_lines_only(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(view, "err", Console(file=stream, width=100))
    with view.watching("fmha on sm_90a", Budget()) as (say, watch):
        watch(standing(Budget(), 1.0))
        say("1: tile=1: [8.00] µs")
    assert stream.getvalue() == "1: tile=1: [8.00] µs\n"


def test_sweeps_at_the_same_time_have_a_table_each(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(view, "err", Console(file=stream, force_terminal=True, color_system=None, width=100))
    budget = Budget(configurations=20)
    with view.Board() as board:
        with (
            board.watching("1 of 2: fmha", budget) as (say, watch),
            board.watching("2 of 2: quantize", budget) as (_, other),
        ):
            watch(standing(budget, 1.0))
            other(standing(budget, 1.0, TRIED[:1]))
            say("1 fmha: tile=1")
            both = Console(file=io.StringIO(), width=100)
            both.print(board._current())
        alone = Console(file=io.StringIO(), width=100)
        alone.print(board._current())
    shown = both.file.getvalue()
    assert shown.index("1 of 2: fmha") < shown.index("measured      ") < shown.index("2 of 2: quantize")
    assert shown.count("refused by constraints") == 2 and "1 fmha: tile=1" in stream.getvalue()
    assert "of 2" not in alone.file.getvalue()
