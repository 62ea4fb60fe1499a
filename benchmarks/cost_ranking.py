"""How well the cost model ranks the configurations of the spaces that were measured whole (``results/spaces``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.keep_spaces import SPACES
from dsv4.tuner.cost.calibration import Calibration
from dsv4.tuner.cost.score import Recorded, score
from dsv4.tuner.recorded import by_shape, read_report

_ROUNDED = ("spearman", "top_loss", "default_loss", "error")


def ranking(calibration: Calibration) -> list[dict[str, Any]]:
    """A row for each recorded sweep and one for each of its shapes, predicted without the operator."""
    rows = []
    for path in sorted(SPACES.glob("*.json")):
        report = read_report(path)
        for each in (report, *by_shape(report)):
            found = asdict(score(Recorded.of(each), calibration))
            short = {name: None if found[name] is None else round(found[name], 4) for name in _ROUNDED}
            rows.append({"file": path.name, "sizes": each.about["sizes"], **found, **short})
    return rows
