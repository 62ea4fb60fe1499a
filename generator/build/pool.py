"""Compile processes: several at once, a time limit for each request, none left behind.

One event loop in the caller's thread starts, feeds and ends them. A process serves one arch, request after request
(its start costs more than a small compile); it is killed with its group when a request runs over its limit, when it
dies, and when the caller is interrupted. A limit is of processor time, which a busy machine hardly lengthens: beside
other work a compile of 8 s has been seen to take 100.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

START_SECONDS_LIMIT = 120.0
PATIENCE = 10
"""So many times its limit a compile may take by the clock on the wall: the machine may be busy."""


class PoolError(RuntimeError):
    """Compile processes cannot be started on this machine. One line, with the log to read."""


@dataclass(frozen=True)
class Request:
    """A folder with ``request.json`` and ``source.py``: to be compiled for ``arch``; ``limit_s`` of processor time."""

    name: str
    folder: Path
    arch: str
    limit_s: float


@dataclass(frozen=True)
class Outcome:
    """``result`` is what the worker wrote, or None with the reason in ``error``."""

    request: Request
    result: dict[str, Any] | None
    error: str | None
    seconds: float


@dataclass
class _Worker:
    arch: str
    process: subprocess.Popen[str]
    request: Request | None = None
    deadline: float = 0.0
    since: float = field(default_factory=time.monotonic)
    used_before: float = 0.0
    ready: bool = False

    @property
    def answers(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def give(self, request: Request) -> None:
        self.request, self.since = request, time.monotonic()
        self.used_before = processor_seconds(self.process.pid)
        self.deadline = self.since + request.limit_s
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: its end of the answers says so to the loop
            self.process.stdin.write(f"{request.folder}\n")
            self.process.stdin.flush()

    def overrun(self, now: float) -> str | None:
        """At the deadline: what the request has taken too much of, or None and a new deadline."""
        assert self.request is not None
        limit = self.request.limit_s
        left = limit - (processor_seconds(self.process.pid) - self.used_before)
        if left <= 0:
            return f"compiling took longer than {limit:g} s of processor time and was stopped (compile_seconds_limit)"
        last = self.since + PATIENCE * limit
        if now >= last:
            return (
                f"compiling did not end in {PATIENCE * limit:g} s and was stopped ({PATIENCE} × compile_seconds_limit)"
            )
        self.deadline = min(now + max(left, 0.1), last)
        return None

    def kill(self) -> None:
        """End the whole group (compiler, linker, probe) and wait for the worker itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def run(
    requests: Sequence[Request], *, jobs: int, done: Callable[[Outcome], None] | None = None, log: Path | None = None
) -> list[Outcome]:
    """Serve all ``requests`` with at most ``jobs`` processes and return the outcomes in the requests' order.

    ``done`` is called for each as it ends. What the workers print before their first request goes to ``log``.
    Whatever is raised here or in ``done`` (an interrupt, say) leaves no process behind.
    """
    waiting = deque(sorted(requests, key=lambda request: request.arch))  # one arch after the other: fewer starts
    outcomes: dict[Path, Outcome] = {}
    workers: list[_Worker] = []
    selector = selectors.DefaultSelector()

    def finish(worker: _Worker, error: str | None = None) -> None:
        request = worker.request
        assert request is not None
        worker.request = None
        outcome = _outcome(request, error, time.monotonic() - worker.since)
        outcomes[request.folder] = outcome
        if done:
            done(outcome)

    def drop(worker: _Worker) -> None:
        selector.unregister(worker.answers)
        workers.remove(worker)
        worker.kill()

    def start(arch: str) -> None:
        worker = _Worker(arch, _spawn(arch, log), deadline=time.monotonic() + START_SECONDS_LIMIT)
        workers.append(worker)
        selector.register(worker.answers, selectors.EVENT_READ, worker)

    def feed() -> None:
        """Give every idle worker of the right arch a request; end the others; start as many as are missing."""
        for worker in [worker for worker in workers if worker.ready and worker.request is None]:
            if waiting and waiting[0].arch == worker.arch:
                worker.give(waiting.popleft())
            else:
                drop(worker)
        starting = sum(not worker.ready for worker in workers)
        while len(workers) < jobs and starting < len(waiting):
            start(waiting[starting].arch)
            starting += 1

    try:
        while len(outcomes) < len(requests):
            feed()
            now = time.monotonic()
            for key, _ in selector.select(max(0.0, min(worker.deadline for worker in workers) - now)):
                worker = key.data
                line = worker.answers.readline()
                if not line:
                    code = _exit_code(worker)
                    request_was_there = worker.request is not None
                    if not request_was_there:
                        raise PoolError(f"the compile process ended at its start ({code}); its output: {log}")
                    drop(worker)
                    finish(worker, f"the compile process ended: {code}")
                elif not worker.ready:
                    worker.ready = True
                    worker.deadline = float("inf")
                elif worker.request is not None:
                    worker.deadline = float("inf")
                    finish(worker)
            now = time.monotonic()
            for worker in [worker for worker in workers if worker.deadline <= now]:
                if worker.request is None:
                    raise PoolError(
                        f"the compile process did not start within {START_SECONDS_LIMIT:g} s; its output: {log}"
                    )
                overrun = worker.overrun(now)
                if overrun is not None:
                    drop(worker)
                    finish(worker, overrun)
    finally:
        for worker in workers:
            worker.kill()
        selector.close()
    return [outcomes[request.folder] for request in requests]


def processor_seconds(pid: int) -> float:
    """What a process and those of its children that have ended have taken; 0 where it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _spawn(arch: str, log: Path | None) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CUTE_DSL_ARCH": arch, "PYTHONHASHSEED": "0"}
    environment = {name: value for name, value in environment.items() if name == "CUTE_DSL_ARCH" or _harmless(name)}
    with open(log or os.devnull, "ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "dsv4.generator.build.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )


def _harmless(name: str) -> bool:
    """The compiler's own variables would change kernels behind the build key's back."""
    return not name.startswith("CUTE_DSL_")


def _exit_code(worker: _Worker) -> str:
    try:
        code = worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it closed its answers"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _outcome(request: Request, error: str | None, seconds: float) -> Outcome:
    if error is not None:
        return Outcome(request, None, error, seconds)
    result = json.loads((request.folder / "result.json").read_text())
    return Outcome(request, None if "error" in result else result, result.get("error"), seconds)
