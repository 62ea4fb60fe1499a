"""The caller's side of the process in which quack runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENDS_S = 10
"""Seconds that the process has to end by itself, once nothing more is asked of it."""
MISSING = "quack-kernels is not installed: pip install -e '.[third-party]' -c constraints.txt"


def is_installed() -> bool:
    """True where quack can be imported."""
    return importlib.util.find_spec("quack") is not None


class Session:
    """One process for one architecture. It works on what was asked for ahead of being asked for the answer."""

    def __init__(self, arch: str, names: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dsv4-third-party-")
        command = [sys.executable, "-m", "benchmarks.third_party.process", arch, self._folder.name]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._asked: list[str] = []
        for name in names:
            self._ask(name)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(ENDS_S if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def _ask(self, name: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(name) + "\n")
        self._process.stdin.flush()
        self._asked.append(name)

    def answer(self, name: str) -> dict[str, Any]:
        """What the case gave: see ``process.answer``; with the key ``error`` where it could not be carried out.

        Answers come in the order of the questions; those that stand before this one are dropped. Raises RuntimeError
        where the process has died.
        """
        if name not in self._asked:
            self._ask(name)
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the process that runs quack has ended with code {self._process.wait()}")
            self._asked.pop(0)
            found: dict[str, Any] = json.loads(line)
            if found["name"] == name:
                return found
