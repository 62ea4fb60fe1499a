"""Lines of another process's output."""

from __future__ import annotations

import os

import pytest

from dsv4.runtime.lines import LineReader


def test_lines_come_whole_and_in_time() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as stream:
        reader = LineReader(stream)
        os.write(theirs, b"one\ntw")
        assert reader.line(1.0) == b"one"
        with pytest.raises(TimeoutError, match="nothing heard for 0 s"):
            reader.line(0.01)
        os.write(theirs, b"o\n\nthr")
        assert [reader.line(1.0), reader.line(1.0)] == [b"two", b""]
        os.close(theirs)
        with pytest.raises(EOFError):
            reader.line(1.0)
