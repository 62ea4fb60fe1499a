"""Measuring workers that are forked from a process which has everything imported: a start costs the CUDA context, not
torch's import as well.

    python -m dsv4.tuner.prefork

The server never touches CUDA, so that a fork of it is as good as a new process: a worker that faults or hangs is ended
with its group, and the next one has a context of its own. One in which nothing at all went wrong stays, and takes the
next order, with its context, the reference's cases and the flush's memory at hand; after any finding or failure it
ends, as what a wrong kernel wrote may lie anywhere in its memory.

The server reads an order a line (``request``, ``out``, ``log``) and answers with two: the worker's number, and its exit
code (0 of one that stays). A worker that ended is unreaped until the next order or the end, so that its number cannot
belong to another process while somebody may kill it. Server and worker end when the server's input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsv4.tuner.protocol import Event, Request

POLL_S = 0.01
SERVE = (sys.executable, "-m", "dsv4.tuner.prefork")


class Prefork:
    """Starts workers (``worker.Start``), one at a time, by a server that begins with the first of them and lasts."""

    def __init__(self, command: tuple[str, ...] = SERVE) -> None:
        self._command = command
        self._server: subprocess.Popen[bytes] | None = None

    def __call__(self, request: Request, events: Path, log: Path) -> Forked:
        if self._server is None or self._server.poll() is not None:
            self._server = self._begin(log)
        return Forked(self._server, {"request": request.model_dump_json(), "out": str(events), "log": str(log)})

    def _begin(self, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as stream:  # what goes wrong before there is a worker is told like a worker's own words
            server = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, start_new_session=True,
                bufsize=0,
            )  # fmt: skip
        assert server.stdout is not None
        os.set_blocking(server.stdout.fileno(), False)
        return server


class Forked:
    """A worker of the server, seen as ``subprocess.Popen`` shows one. While its number is not known yet, what is killed
    is the server."""

    def __init__(self, server: subprocess.Popen[bytes], order: dict[str, Any]) -> None:
        self._server, self._text = server, b""
        self._pid: int | None = None
        self.returncode: int | None = None
        assert server.stdin is not None and server.stdout is not None
        self._answers = server.stdout
        try:
            server.stdin.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            self.returncode = server.wait()

    @property
    def pid(self) -> int:
        return self._server.pid if self._pid is None else self._pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        while self.returncode is None:
            chunk = self._answers.read(4096)
            if chunk is None:
                break
            if not chunk:
                self.returncode = self._server.wait()
                break
            self._text += chunk
            *lines, rest = self._text.split(b"\n")
            for line in lines:
                if self._pid is None:
                    self._pid = int(line)
                else:
                    self.returncode = int(line)
            self._text = rest
        return self.returncode

    def wait(self) -> int:
        """The exit code, as soon as there is one."""
        while self.poll() is None:
            select.select([self._answers], [], [], 1.0)
        assert self.returncode is not None
        return self.returncode


def serve() -> None:
    """Have a worker answer each order until there are no more: the one that is there, or a new one."""
    from dsv4.tuner import measure

    worker: _Worker | None = None
    for order in iter(sys.stdin.buffer.readline, b""):
        if worker is not None and worker.has_ended():
            worker.reap()
            worker = None
        if worker is None:
            worker = _Worker(measure.answer)
        print(worker.pid, flush=True)
        print(worker.answer(order), flush=True)


class _Worker:
    """A forked worker as its server has it: orders go to it by one pipe, and a line comes back by another when it is
    done with one and stays."""

    def __init__(self, answer: Callable[[str, Path], int]) -> None:
        orders, self._orders = os.pipe()
        self._lines, lines = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._orders)
            os.close(self._lines)
            _work(answer, orders, lines)
        os.close(orders)
        os.close(lines)
        os.read(self._lines, 1)  # it leads its group from here on, so that it can be killed with it

    def answer(self, order: bytes) -> int:
        """0 where it is done and stays, or the exit code; minus the signal's number where one ended it.

        The next order comes after the answer to this one, so that what is to be read before it is the end of the input:
        whoever gave the order is gone, and the worker goes, too.
        """
        with suppress(BrokenPipeError):
            os.write(self._orders, order)
        ready, _, _ = select.select([self._lines, sys.stdin.buffer], [], [])
        if self._lines in ready and os.read(self._lines, 1):
            return 0
        if sys.stdin.buffer in ready:
            self._kill()
        while (done := self._state(os.WNOHANG)) is None:  # what it had open is closed a little before it is gone
            if select.select([sys.stdin.buffer], [], [], POLL_S)[0]:
                self._kill()
        return done.si_status if done.si_code == os.CLD_EXITED else -done.si_status

    def has_ended(self) -> bool:
        return self._state(os.WNOHANG) is not None

    def reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._lines)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _state(self, how: int) -> os.waitid_result | None:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | how)


def _work(answer: Callable[[str, Path], int], orders: int, lines: int) -> None:
    """The worker: a session of its own, its words in the log, none of the server's pipes. Does not return."""
    code = 1
    try:
        os.setsid()
        os.write(lines, b"s")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        with os.fdopen(orders, "rb") as stream:
            for line in iter(stream.readline, b""):
                order, code = json.loads(line), 1
                words = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                for target in (1, 2):
                    os.dup2(words, target)
                os.close(words)
                code = answer(order["request"], Path(order["out"]))
                if code or not _is_spotless(Path(order["out"])):
                    break
                os.write(lines, b"0")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_spotless(events: Path) -> bool:
    """Whether nothing failed and every kernel that was checked is right."""
    for line in events.read_text().splitlines():
        event = Event.model_validate_json(line)
        if event.event == "failed" or (event.event == "checked" and not event.data.get("ok")):
            return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
