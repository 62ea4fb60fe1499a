"""The progress bar: on a terminal, where rich is installed."""

from __future__ import annotations

import io
import sys

import pytest
from checkpoint_samples import Written

from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.checkpoint.progress import Silent, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_what_is_loaded_and_how_much(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="not needed at serving time: the extra `gen`")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    load(written("fp8_mxfp4", 1))
    seen = terminal.getvalue()
    assert "loading mtp.0" in seen
    assert "MB" in seen
    assert "\x1b[2K" in seen  # and is left clean afterwards


def test_nothing_is_shown_elsewhere_or_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with shown(10) as bar:
        assert isinstance(bar, Silent)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "rich", None)
    with shown(10) as bar:
        assert isinstance(bar, Silent)
