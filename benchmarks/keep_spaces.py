"""Keep sweeps of whole spaces that ran on a GPU: ``python -m benchmarks.keep_spaces FOLDER``.

FOLDER holds NAME.report.json (``dsv4-tune report --json``) and, where the sweep went to its end, NAME.sweep.json
(``dsv4-tune sweep --json``) for each. What is kept of them lies in ``benchmarks/results/spaces``, a dated file each, to
be scored (``dsv4-tune predict --score FILE…``) and replayed (``dsv4-tune replay FILE``).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.machine import device_slug
from benchmarks.harness.result import RESULTS, replace_text
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner.recorded import as_file, read_report

SPACES = RESULTS / "spaces"
TIMES_MIN = 8
"""Fewer configurations with times are no recording of a space."""
_OF_A_WINNER = ("bucket", "sizes", "best", "chosen", "why", "speedup", "compared")


def kept(report: Path, date: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the contents of the file for ``report``; None where its times are made up or too few."""
    name = report.name.removesuffix(".report.json")
    found = json.loads(report.read_text(encoding="utf-8"))
    device = found["about"]["device"]["name"]
    if device == FAKE_DEVICE or sum(row["us"] is not None for row in found["rows"]) < TIMES_MIN:
        return None
    file = as_file(found, date, winners(report.with_name(f"{name}.sweep.json")))
    return f"{date}_{device_slug(device)}_{name}.json", file


def winners(sweep: Path) -> list[dict[str, Any]]:
    """What the sweep's end says of each bucket; nothing of one that was cut off."""
    text = sweep.read_text(encoding="utf-8") if sweep.is_file() else ""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [
        {name: each[name] for name in _OF_A_WINNER}
        for each in found["winners"] or [{**found, "bucket": {}, "sizes": found["shapes"]}]
    ]


def main(
    folder: Annotated[Path, typer.Argument(help="Where the reports lie.", exists=True, file_okay=False)],
    date: Annotated[str | None, typer.Option("--date", help="Day of the measurement (default: each report's).")] = None,
) -> None:
    """Write a dated file for each sweep in FOLDER that measured something."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    SPACES.mkdir(exist_ok=True)
    for report in sorted(folder.glob("*.report.json")):
        when = datetime.fromtimestamp(report.stat().st_mtime, UTC).date().isoformat()
        made = kept(report, date or when) if report.stat().st_size else None
        if made is None:
            out.print(f"{report.name}: left out, made-up times or fewer than {TIMES_MIN}")
            continue
        name, contents = made
        replace_text(
            SPACES / name, json.dumps(contents, separators=(",", ":")).replace('},{"config"', '},\n{"config"') + "\n"
        )
        out.print(f"{SPACES / name}: {len(read_report(SPACES / name).rows)} configurations")


if __name__ == "__main__":
    typer.run(main)
