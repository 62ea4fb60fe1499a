"""Lines of another process's output, each within a time limit."""

from __future__ import annotations

import os
import selectors
import time
from typing import IO


class LineReader:
    """Reads an unbuffered pipe; what came after a line is kept for the next."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream.fileno()
        self._unread = b""

    def line(self, seconds: float) -> bytes:
        """The next line, without its end. Raises TimeoutError after ``seconds`` without one, EOFError at the end."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._stream, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"nothing heard for {seconds:.0f} s")
                received = os.read(self._stream, 1 << 16)
                if not received:
                    raise EOFError
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line
