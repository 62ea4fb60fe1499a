"""Many benchmarks one after another, each in a process of its own that can be killed, within one budget of time.

What has been tried is kept in ``progress.json`` beside the results, so that the next call goes on where this one ended:
first what was never tried, in the order given, then what was cut short, void or failed. A benchmark is told to begin no
further case some time before its limit; one that does not end is killed with all that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import result as results

DONE, PART, VOID, FAILED, KILLED = "done", "part", "void", "failed", "killed"
PROGRESS = "progress.json"
LOGS = "logs"
CASE_SECONDS = 60.0
"""How long before its limit a benchmark begins no further case: one case compiles and measures every peer."""
LEAST_SECONDS = 2 * CASE_SECONDS
"""No benchmark is begun with less time than this."""
SAID_LINES = 3


@dataclass(frozen=True)
class Job:
    """One operator: ``command`` measures it and writes its result file into ``--out`` (see ``full_command``)."""

    name: str
    command: tuple[str, ...]


@dataclass
class Record:
    """How the last attempt at an operator ended. ``file``: its result, ``cases`` how many that has, ``left`` not."""

    status: str
    attempts: int
    seconds: float
    file: str = ""
    cases: int = 0
    left: int = 0
    said: str = ""


Run = Callable[[Sequence[str], float, Path], int | None]
"""Runs a command for at most so many seconds with its output in a file: its exit code, ``None`` where it was killed."""


def run_process(command: Sequence[str], seconds: float, log: Path) -> int | None:
    """``Run`` with a process group, of which nothing is left afterwards."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Campaign:
    """Jobs in order of value, their progress and their results in ``folder``.

    ``healthy`` says whether the GPU still answers, ``told`` is called after each attempt.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        *,
        run: Run = run_process,
        healthy: Callable[[], bool] = lambda: True,
        told: Callable[[str, Record], Any] = lambda name, record: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs, self.folder = {job.name: job for job in jobs}, folder
        self._run, self._healthy, self._told, self._clock = run, healthy, told, clock
        self.records = read_progress(folder)

    def queue(self) -> list[Job]:
        """What is left to do: never tried first, then what was tried least often; each in the order given."""
        open_ = [job for job in self.jobs.values() if self._status(job) != DONE]
        return sorted(open_, key=lambda job: self.records[job.name].attempts if job.name in self.records else 0)

    def _status(self, job: Job) -> str:
        return self.records[job.name].status if job.name in self.records else ""

    def measure(self, *, budget_s: float, limit_s: float) -> str:
        """Try every job that is left once, for at most ``limit_s`` each and ``budget_s`` together.

        Returns why it ended before the queue was empty, in one line, else an empty text.
        """
        began = self._clock()
        for job in self.queue():
            left = budget_s - (self._clock() - began)
            if left < LEAST_SECONDS:
                return (
                    f"budget: {left:.0f} s are left of {budget_s:.0f}; a benchmark wants at least {LEAST_SECONDS:.0f}"
                )
            record = self.attempt(job, min(limit_s, left))
            self._told(job.name, record)
            if record.status in (FAILED, KILLED) and not self._healthy():
                return f"{job.name}: the GPU does not answer after it"
        return ""

    def attempt(self, job: Job, seconds: float) -> Record:
        """One benchmark within ``seconds``; its record and, where it is better than what was there, its result."""
        fresh = self.folder / f"{job.name}.running"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        log = self.folder / LOGS / f"{job.name}.log"
        log.parent.mkdir(exist_ok=True)
        began = self._clock()
        code = self._run(full_command(job, fresh, seconds - CASE_SECONDS), seconds, log)
        before = self.records.get(job.name)
        record = Record(FAILED, 1 + (before.attempts if before else 0), round(self._clock() - began, 1))
        found = sorted(fresh.glob("*.json"))
        if code is None:
            record.status, record.said = KILLED, f"killed after {seconds:.0f} s; {_last_lines(log)}"
        elif not found:
            record.said = f"exit code {code}; {_last_lines(log)}"
        else:
            self._take(found[-1], record, before)
        shutil.rmtree(fresh, ignore_errors=True)
        if not record.file and before is not None:  # what an earlier attempt gave stays
            record.file, record.cases, record.left = before.file, before.cases, before.left
        self.records[job.name] = record
        write_progress(self.folder, self.records)
        return record

    def _take(self, path: Path, record: Record, before: Record | None) -> None:
        """Move a new result into the folder in place of an earlier one, unless that says more."""
        made = results.read(path)
        left = made.get("left", [])
        record.status = VOID if made["void"] else PART if left else DONE
        record.said = made["void"][0] if made["void"] else ""
        kept = before is not None and before.file and before.status != VOID and before.cases >= len(made["cases"])
        if kept and record.status != DONE:
            return
        if before is not None and before.file:
            (self.folder / before.file).unlink(missing_ok=True)
        record.file, record.cases, record.left = path.name, len(made["cases"]), len(left)
        os.replace(path, self.folder / path.name)


def full_command(job: Job, folder: Path, seconds: float) -> list[str]:
    """The job's command with where its result goes and after how many seconds it begins no further case."""
    return [*job.command, "--out", str(folder), "--seconds", f"{seconds:.0f}"]


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-SAID_LINES:])[-500:] or "it said nothing"


def read_progress(folder: Path) -> dict[str, Record]:
    """What was tried so far; empty where nothing was. Raises ``ValueError`` in one line for a file that is none."""
    path = folder / PROGRESS
    if not path.exists():
        return {}
    try:
        return {name: Record(**record) for name, record in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: found no progress ({error}); valid: what an earlier call wrote there") from None


def write_progress(folder: Path, records: dict[str, Record]) -> None:
    text = json.dumps({name: asdict(record) for name, record in records.items()}, indent=1)
    results.replace_text(folder / PROGRESS, text + "\n")
