"""Evidence beside an artifact: checks climbed and measurements, added one at a time and never half written."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsv4.runtime.artifact import EVIDENCE_NAME, Check, Evidence, Rung


def new_check(rung: Rung, ok: bool, *, device: str | None = None, **detail: Any) -> Check:
    """A check made now; ``device`` says on what (the machine's processor type where nothing else ran it)."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Check(rung=rung, device=device or f"cpu {platform.machine()}", when=when, ok=ok, detail=detail)


def read_evidence(artifact: Path) -> Evidence:
    """The evidence of an artifact folder; empty where none was written yet."""
    try:
        return Evidence.model_validate_json((artifact / EVIDENCE_NAME).read_bytes())
    except FileNotFoundError:
        return Evidence()


def add_check(artifact: Path, check: Check) -> Evidence:
    """Append ``check`` to the evidence of the artifact folder and return the whole."""
    with _locked(artifact):
        evidence = read_evidence(artifact)
        evidence = evidence.model_copy(update={"checks": (*evidence.checks, check)})
        write_evidence(artifact, evidence)
    return evidence


def add_measurement(artifact: Path, measurement: dict[str, Any]) -> Evidence:
    """Append ``measurement`` to the evidence of the artifact folder and return the whole."""
    with _locked(artifact):
        evidence = read_evidence(artifact)
        evidence = evidence.model_copy(update={"measurements": (*evidence.measurements, measurement)})
        write_evidence(artifact, evidence)
    return evidence


def write_evidence(artifact: Path, evidence: Evidence) -> None:
    """Replace the evidence file: readers see the old one or the new one."""
    temporary = artifact / f".{EVIDENCE_NAME}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(evidence.model_dump(mode="json"), indent=1) + "\n")
        os.replace(temporary, artifact / EVIDENCE_NAME)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(artifact: Path) -> Iterator[None]:
    """Hold the artifact folder's lock: two processes that add at once both get their line in."""
    handle = os.open(artifact, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
