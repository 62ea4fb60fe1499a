"""Sweeps of whole spaces as files: a study that was taken out of its storage, to be scored and replayed anywhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsv4.generator.console import UsageError
from dsv4.tuner.peers import ResultFile
from dsv4.tuner.report import Report, Row, importance_of, peers_of, placed
from dsv4.tuner.tried import spelled

RECORDED_SCHEMA = 1
_KEPT = ("config", "us", "shapes_us", "spread", "is_slow", "failure")
_ABOUT = ("op", "arch", "dims", "variant", "pinned", "device", "policy", "sizes", "default")
VALID = "a file of benchmarks/results/spaces, or what 'dsv4-tune report --json' printed"


def as_file(report: Mapping[str, Any], date: str, winners: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What is kept of ``dsv4-tune report --json``: the question, and each configuration with its microseconds by shape.

    ``date`` is the day of the measurement, ``winners`` what the end of the sweep compared with the default.
    """
    rows = [{name: row[name] for name in _KEPT if row[name] not in (None, False)} for row in report["rows"]]
    return {
        "recorded_schema": RECORDED_SCHEMA,
        "date": date,
        "study": report["study"],
        "about": report["about"],
        "gpu": report["gpu"],
        "winners": list(winners),
        "rows": rows,
    }


def read_report(path: Path, peer_files: Sequence[ResultFile] | None = ()) -> Report:
    """The study in ``path``, with peers from ``peer_files`` (None: those of a checkout). Raises UsageError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        about = dict(raw["about"])
        rows = [_row(number, each) for number, each in enumerate(raw["rows"])]
        missing = [name for name in _ABOUT if name not in about]
        study, gpu = str(raw["study"]), dict(raw["gpu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"study: {path}: found no recorded sweep ({one_line(error)}); valid: {VALID}") from None
    if missing:
        raise UsageError(f"study: {path}: about: found no {missing[0]}; valid: {VALID}")
    default = next((row for row in rows if row.config == about["default"]), None)
    best = min((row for row in rows if row.us is not None), key=lambda row: row.us or 0.0, default=None)
    importance, importance_missing = importance_of(rows)
    return Report(
        study=study,
        about=about,
        rows=rows,
        default=default,
        best=best,
        importance=importance,
        importance_missing=importance_missing,
        refused=about.get("refused", {}),
        failed=dict(Counter(row.failure for row in rows if row.failure).most_common()),
        lost=0,
        gpu=gpu,
        placed=placed(about, default, best),
        peers=peers_of(about, peer_files),
    )


def _row(number: int, raw: Mapping[str, Any]) -> Row:
    return Row(
        number=number,
        config=dict(raw["config"]),
        us=raw.get("us"),
        failure=raw.get("failure"),
        is_slow=bool(raw.get("is_slow")),
        spread=float(raw.get("spread") or 0.0),
        shapes_us=list(raw.get("shapes_us", [])),
        artifact=str(raw.get("artifact", "")),
    )


def at_shape(report: Report, place: int) -> Report:
    """``report`` as it stands at the shape ``place`` alone, as a sweep of a bucket around it would have found it."""
    sizes = report.about["sizes"][place]

    def here(row: Row | None) -> Row | None:
        if row is None or row.us is None:
            return row
        return replace(row, us=row.shapes_us[place], shapes_us=[row.shapes_us[place]])

    rows = [each for row in report.rows if (each := here(row)) is not None]
    study = f"{report.study} {spelled(sizes)}"
    about = {**report.about, "sizes": [sizes]}
    best = min((row for row in rows if row.us is not None), key=lambda row: row.us or 0.0, default=None)
    return replace(report, study=study, about=about, rows=rows, default=here(report.default), best=best)


def by_shape(report: Report) -> list[Report]:
    """The report at each of its shapes; none where there is one only."""
    sizes = report.about.get("sizes", [])
    return [at_shape(report, place) for place in range(len(sizes))] if len(sizes) > 1 else []


def one_line(error: Exception) -> str:
    words = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(words.split())[:80]
