"""Dated files of checks, under ``results/checks``: what ran, on what commit, with which result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import commit
from benchmarks.harness.result import RESULTS, SCHEMA, replace_text

CHECKS = RESULTS / "checks"


def check_path(when: datetime, name: str) -> Path:
    """Where the check ``name`` of this day stands."""
    return CHECKS / f"{when.date().isoformat()}_{name}.json"


def head(when: datetime) -> dict[str, Any]:
    """What every such file begins with."""
    return {"schema": SCHEMA, "date": when.isoformat(timespec="seconds"), "commit": commit()}


def write_check(path: Path, result: Mapping[str, Any]) -> None:
    """Write ``result`` as JSON, whole or not at all."""
    replace_text(path, json.dumps(result, indent=1) + "\n")
