"""Rates and the progress line."""

from __future__ import annotations

import io

from dsv4.runtime.engine.meter import Meter, ProgressLine


def test_rates() -> None:
    now = [10.0]
    meter = Meter(300, clock=lambda: now[0])
    assert meter.decode_rate == 0 and meter.prompt_rate == 0
    now[0] = 12.0
    meter.add()
    assert meter.prompt_rate == 150 and meter.decode_rate == 0
    for _ in range(4):
        now[0] += 0.5
        meter.add()
    now[0] += 100
    assert meter.prompt_rate == 150 and meter.decode_rate == 2 and meter.new_tokens == 5


def test_the_line_is_written_over_and_taken_away() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, shown=True, every_s=1.0)
    line.show("long text", now=1.0)
    line.show("too soon", now=1.5)
    line.show("short", now=2.0)
    line.clear()
    line.clear()
    assert stream.getvalue() == "\rlong text\rshort    \r     \r"


def test_nothing_is_shown_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.show("text")
    line.clear()
    assert stream.getvalue() == ""
