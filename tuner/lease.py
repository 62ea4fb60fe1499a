"""Who is at work on a study, and who no longer is.

A worker on this machine is looked up among the processes. One on another machine is believed for as long as its beat,
a number that it raises every few seconds, goes on changing; clocks of different machines are never compared.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEAT_S = 5.0
GRACE_S = 60.0
"""A worker elsewhere whose beat has not changed for so long, as seen from here, is taken for dead."""


@dataclass(frozen=True)
class Worker:
    """A process, identified for good: ``place`` is the boot and the process namespace that ``pid`` belongs to, and
    ``started`` (clock ticks since boot) tells it from a later process with the same number."""

    name: str
    place: str
    pid: int
    started: int

    @classmethod
    def this(cls) -> Worker:
        """A new worker in this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex[:12], _place(), pid, _started(pid) or 0)

    def record(self, beat: int) -> dict[str, Any]:
        """What the study keeps of this worker."""
        return {**asdict(self), "beat": beat}


class Attendance:
    """Tells which workers are dead. Make one and keep it: the dead elsewhere are known by watching."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._seen: dict[str, tuple[Any, float]] = {}

    def is_dead(self, record: dict[str, Any] | None) -> bool:
        """Whether the worker of this record is. One without a record never began, or its study is damaged: dead."""
        if record is None:
            return True
        if record.get("place") == _place():
            started = _started(int(record["pid"]))
            return started is None or started != record["started"]
        name, beat, now = str(record.get("name")), record.get("beat"), time.monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != beat:
            self._seen[name] = beat, now
            return False
        return now - known[1] > self.grace_s


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()}/{uuid.getnode()}"


def _started(pid: int) -> int | None:
    """When the process began; None where there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
