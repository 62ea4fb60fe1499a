"""How fast a generation goes, and a line on the terminal that shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO


@dataclass
class Meter:
    """Counts tokens against time. Prompts are over when the first new token is there; decoding begins then.

    With several sequences both overlap, and ``decode_rate`` counts new tokens after the first one.
    """

    prompt_tokens: int
    clock: Callable[[], float] = time.perf_counter
    new_tokens: int = 0
    started: float = 0.0
    first: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self) -> None:
        """One new token."""
        self.new_tokens += 1
        self.last = self.clock()
        if self.first is None:
            self.first = self.last

    @property
    def seconds(self) -> float:
        return self.clock() - self.started

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens a second until the first new token."""
        spent = (self.clock() if self.first is None else self.first) - self.started
        return self.prompt_tokens / spent if spent > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens a second after the first."""
        if self.first is None or self.last is None or self.last <= self.first:
            return 0.0
        return (self.new_tokens - 1) / (self.last - self.first)


class ProgressLine:
    """One line that is written over, where ``stream`` is a terminal; nothing elsewhere."""

    def __init__(self, stream: TextIO = sys.stderr, *, shown: bool | None = None, every_s: float = 0.1) -> None:
        self._stream, self._every = stream, every_s
        self._shown = stream.isatty() if shown is None else shown
        self._width = 0
        self._next = 0.0

    def show(self, text: str, now: float | None = None) -> None:
        """``text`` in place of the last one, at most once in ``every_s``."""
        now = time.perf_counter() if now is None else now
        if self._shown and now >= self._next:
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._stream.flush()
            self._width, self._next = len(text), now + self._every

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
