"""Run measuring workers: each in a process group of its own, under a time limit, and only the culprit pays for a hang.

A worker that hangs, faults or dies is killed with its group; the artifact that it was at is reported as failed and a
fresh worker takes the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dsv4.tuner.protocol import Event, Request, Timing

START_LIMIT_S = 120.0
"""Importing torch and making a CUDA context, on a machine that is busy compiling."""

MEASURE = (sys.executable, "-m", "dsv4.tuner.measure")


class WorkerError(Exception):
    """No worker can be had: it does not start, or the device does not come back. One line."""


class DefaultFailed(WorkerError):
    """The default failed while others took turns with it, so that there is nothing to set them beside: the fault is the
    kernel's, workers can be had. One line."""


class Stopped(Exception):
    """Somebody asked for the end while a worker was at work; it was killed."""


class Process(Protocol):
    """What is needed of a started worker, which leads a process group (``subprocess.Popen``)."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


Start = Callable[[Request, Path, Path], Process]
"""Starts a worker that answers a request: its lines go to the first file, its words to the second."""


def spawn(request: Request, events: Path, log: Path, command: Sequence[str] = MEASURE) -> Process:
    """A worker as a new process (``Start``)."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--out", str(events)],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request.model_dump_json().encode())
        process.stdin.close()
    return process


@dataclass
class Outcome:
    """What became of one artifact. ``error`` is one line; ``checked`` is the check's data where one was made.

    ``timings`` are the newest at each of the sizes, those of the last rung that it reached.
    """

    artifact: str
    checked: dict[str, Any] | None = None
    timings: list[Timing] = field(default_factory=list)
    history: dict[int, list[Timing]] = field(default_factory=dict)
    """Timing rounds of a rung → its timings."""
    compared: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    device: str = ""
    gpu: int | None = None
    """The index of the GPU that it ran on."""

    @property
    def failure(self) -> str | None:
        """Why this artifact is out, or ``None``."""
        if self.error:
            return self.error
        if self.checked and not self.checked["ok"]:
            return str(self.checked["findings"][0])
        return None

    def measured(self, timing: Timing) -> None:
        """Take in a timing; it replaces one of an earlier rung."""
        self.history.setdefault(timing.rounds, []).append(timing)
        self.timings = [other for other in self.timings if other.sizes != timing.sizes] + [timing]


def run(
    request: Request,
    *,
    limit_s: float,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    command: Sequence[str] = MEASURE,
    start: Start | None = None,
    start_limit_s: float = START_LIMIT_S,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Answer ``request``, in as many worker processes as it takes; one outcome per artifact, in their order.

    ``limit_s`` bounds the time that a worker may be silent after it began something of an artifact. Rounds that were
    timed in turn count as a whole: after a worker's end those that did not fail are timed anew, without the culprit,
    but not checked again. An incumbent that fails is left out of the rest, and ``progress`` is told of it.

    Workers are new processes by ``command``, or whatever ``start`` begins. ``is_stopped`` is asked again and again;
    once it says so the worker is killed and ``Stopped`` raised.

    Raises ``WorkerError`` where a worker does not get ready, ``DefaultFailed`` where the default fails that others are
    set beside. In a comparison there is one outcome, that of the second artifact.
    """
    begin = start or partial(spawn, command=command)
    wanted = request.artifacts[1:] if request.compare else request.artifacts
    done: dict[str, Outcome] = {}
    checks: dict[str, dict[str, Any]] = {}
    while left := tuple(name for name in wanted if name not in done):
        part = request if request.compare else request.model_copy(update={"artifacts": left})
        found, culprit = _one_worker(part, left, limit_s, begin, start_limit_s, is_stopped)
        checks |= {name: outcome.checked for name, outcome in found.items() if outcome.checked}
        if culprit in request.beside[:1]:
            raise DefaultFailed(f"the default failed while others took turns with it: {found[culprit].error}")
        if culprit:
            passed = tuple(name for name, checked in checks.items() if checked["ok"])
            beside = tuple(name for name in request.beside if name != culprit)
            request = request.model_copy(update={"passed": passed, "beside": beside})
        for name, outcome in found.items():
            if outcome.failure or (name in left and not culprit):
                outcome.checked, outcome.gpu = checks.get(name), request.device_index
                done[name] = outcome
                progress(outcome)
    return [done[name] for name in wanted]


def on(device_index: int, start: Start) -> Callable[..., list[Outcome]]:
    """``run`` with workers of ``start`` on the GPU ``device_index``."""

    def measure(request: Request, **more: Any) -> list[Outcome]:
        return run(request.model_copy(update={"device_index": device_index}), start=start, **more)

    return measure


def _one_worker(
    request: Request,
    wanted: tuple[str, ...],
    limit_s: float,
    start: Start,
    start_limit_s: float,
    is_stopped: Callable[[], bool],
) -> tuple[dict[str, Outcome], str]:
    """What a worker got to, at least one, and the one that it was at when it ended too early (empty if it did not)."""
    with tempfile.TemporaryDirectory(prefix="dsv4-measure-") as folder:
        events, log = Path(folder) / "events", Path(folder) / "log"
        events.touch()
        log.touch()
        process = start(request, events, log)
        try:
            seen, why = _watch(process, events, limit_s, start_limit_s, is_stopped)
        finally:
            kill_group(process)
        if why and not any(event.event == "begin" for event in seen):
            said = [event.data["error"] for event in seen if event.event == "failed"]
            raise WorkerError(f"the measuring worker did not get ready: {said[0] if said else why + _tail(log)}")
        outcomes, at = _collect(seen)
        if not outcomes:
            raise WorkerError(f"the measuring worker did nothing of what was asked{_tail(log)}")
        if not any(event.event == "end" for event in seen):
            outcomes[at].error = outcomes[at].error or f"{why}{_tail(log)}"
            return outcomes, at
        for name in wanted:
            outcomes.setdefault(name, Outcome(name, error="the worker left it out"))
        return outcomes, ""


def _watch(
    process: Process, events: Path, limit_s: float, start_limit_s: float, is_stopped: Callable[[], bool]
) -> tuple[list[Event], str]:
    """Read lines until the worker ends or is silent for too long. All events, and why it ended (empty if well)."""
    seen: list[Event] = []
    pending = ""
    deadline = time.monotonic() + start_limit_s
    with events.open() as stream:
        while True:
            code = process.poll()
            pending += stream.read()
            *lines, pending = pending.split("\n")
            if lines:
                seen += [Event.model_validate_json(line) for line in lines]
                if seen[-1].event in ("ready", "begin", "checked", "measured", "compared", "failed"):
                    deadline = time.monotonic() + (start_limit_s if seen[-1].event == "ready" else limit_s)
            if code is not None:
                well = code == 0 and any(event.event == "end" for event in seen)
                return seen, "" if well else _exit_words(code)
            if time.monotonic() > deadline:
                began = any(event.event == "begin" for event in seen)
                return seen, f"no answer within {limit_s if began else start_limit_s:g} s: killed"
            if is_stopped():
                raise Stopped
            time.sleep(0.02)


def _collect(seen: list[Event]) -> tuple[dict[str, Outcome], str]:
    """Outcomes in the order in which they began, and the artifact that the worker was at last."""
    outcomes: dict[str, Outcome] = {}
    device, at = "", ""
    for event in seen:
        if event.event == "ready":
            device = str(event.data["device"])
        elif event.event == "begin":
            at = event.artifact
            outcomes.setdefault(at, Outcome(at, device=device))
        elif event.event == "checked":
            outcomes[event.artifact].checked = event.data
        elif event.event == "measured":
            outcomes[event.artifact].measured(Timing.model_validate(event.data))
        elif event.event == "compared":
            outcomes[event.artifact].compared.append(event.data)
        elif event.event == "failed" and at:
            outcomes[at].error = str(event.data["error"])
    return outcomes, at


def _exit_words(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the worker was ended by {signal.Signals(-code).name}"
    return f"the worker ended with exit code {code}"


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").strip().splitlines() if line.strip()]
    return f" ({lines[-1].strip()[:200]})" if lines else ""


def kill_group(process: Process) -> None:
    """End the worker and everything that it started. It leads its own group, which lives as long as it is unreaped."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
