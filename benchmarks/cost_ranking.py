"""How well the cost model ranks the configurations of spaces that were measured whole (``results/spaces``), or in part
(``results/transfer``: on other GPUs, and of spaces that were predicted before they were measured)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.result import RESULTS
from benchmarks.keep_spaces import SPACES
from dsv4.tuner.cost.calibration import Calibration
from dsv4.tuner.cost.score import Recorded, score
from dsv4.tuner.recorded import by_shape, read_report

_ROUNDED = ("spearman", "top_loss", "default_loss", "error")


def in_part() -> list[Path]:
    """The files of spaces that were measured in part."""
    return [path for path in sorted((RESULTS / "transfer").glob("*.json")) if not path.stem.endswith("_transfer")]


def ranking(calibration: Calibration, files: Iterable[Path] = ()) -> list[dict[str, Any]]:
    """A row for each of ``files`` (default: the whole spaces) and one for each of its shapes, predicted without the
    operator."""
    rows = []
    for path in files or sorted(SPACES.glob("*.json")):
        report = read_report(path)
        for each in (report, *by_shape(report)):
            found = asdict(score(Recorded.of(each), calibration))
            short = {name: None if found[name] is None else round(found[name], 4) for name in _ROUNDED}
            rows.append({"file": path.name, "sizes": each.about["sizes"], **found, **short})
    return rows
