"""Measuring workers that are forked from a process which has everything imported: a start costs the CUDA context, not
torch's import as well.

    python -m dsv4.tuner.prefork

The server never touches CUDA, so that a fork of it is as good as a new process: a worker that faults or hangs is ended
with its group, and the next one has a context of its own. It reads an order a line (``request``, ``out``, ``log``) and
answers with two: the worker's number, and its exit code. The worker stays unreaped until the next order or the end, so
that its number cannot belong to another process while somebody may kill it. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsv4.tuner.protocol import Request

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
    """Fork a worker for each order until there are no more."""
    from dsv4.tuner import measure

    ended: int | None = None
    for line in iter(sys.stdin.buffer.readline, b""):
        if ended is not None:
            os.waitpid(ended, 0)
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _work(measure.answer, order)
        print(pid, flush=True)
        print(_exit_code(pid), flush=True)
        ended = pid


def _work(answer: Any, order: dict[str, str]) -> None:
    """The worker: a session of its own, its words in the log, none of the server's pipes. Does not return."""
    code = 1
    try:
        os.setsid()
        words = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (words, 1), (words, 2)):
            os.dup2(source, target)
        code = answer(order["request"], Path(order["out"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(pid: int) -> int:
    """Waits for the end of ``pid`` and leaves it unreaped; minus the signal's number where one ended it.

    The next order comes after the answer to this one, so that what is to be read before it is the end of the input:
    whoever gave the order is gone, and the worker goes, too.
    """
    while (done := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if select.select([sys.stdin.buffer], [], [], POLL_S)[0]:
            for kill in (os.killpg, os.kill):  # it may not lead its group yet
                with suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
            done = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            break
    assert done is not None
    return done.si_status if done.si_code == os.CLD_EXITED else -done.si_status


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
