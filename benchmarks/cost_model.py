"""Calibrate and score the tuner's cost model: ``python -m benchmarks.cost_model --write``.

From the dated result files of our kernels on an H100: the coefficients (``tuner/cost/calibration.json``), and how near
predictions come that were made without the operator in question (``benchmarks/results/checks``), beside a roofline
(an empty launch and the larger of bytes and FLOP at the rates measured in the same file). Nothing is measured here.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cost_pairs import noted_pairs
from benchmarks.cost_points import ARCH, DEVICE, Measured, measured_calls
from benchmarks.cost_ranking import in_part, ranking
from benchmarks.harness.check_file import check_path, head, write_check
from benchmarks.harness.result import RESULTS, replace_text
from dsv4.generator.resources import Refused
from dsv4.tuner.cost.calibration import CALIBRATION_SCHEMA, FILE, Calibration
from dsv4.tuner.cost.fit import Point, fit
from dsv4.tuner.cost.model import Coefficients, Rates, predict, rates
from dsv4.tuner.cost.rank import Predictor
from dsv4.tuner.cost.score import spearman
from dsv4.tuner.target import Target

CALIBRATION = Path(__file__).parent.parent / "tuner" / "cost" / FILE
SHOWN_WORST = 12


def errors(predicted_us: Sequence[float], measured_us: Sequence[float]) -> dict[str, float]:
    """How far off, as factors less 1 whichever way: median, nine of ten, most."""
    off = sorted(abs(math.log(one / other)) for one, other in zip(predicted_us, measured_us, strict=True))
    factors = {"median": statistics.median(off), "p90": off[int(0.9 * (len(off) - 1))], "most": off[-1]}
    return {name: round(math.exp(value) - 1, 4) for name, value in factors.items()}


def us(points: Sequence[Point], chip: Rates, coefficients: Coefficients) -> list[float]:
    return [predict(point.launches, chip, coefficients).us for point in points]


def by_operator(points: Sequence[Point], chip: Rates, without: Mapping[str, Coefficients]) -> dict[str, dict[str, Any]]:
    """For each operator, errors and rank correlation over its shapes, predicted without it."""
    found = {}
    for op in sorted({point.group for point in points}):
        mine = [point for point in points if point.group == op]
        predicted, measured = us(mine, chip, without[op]), [point.measured_us for point in mine]
        rank = spearman(predicted, measured)
        found[op] = {
            "calls": len(mine),
            "error": errors(predicted, measured),
            "spearman_over_shapes": None if rank is None else round(rank, 4),
        }
    return found


def sweeps(chip: Rates, without: Mapping[str, Coefficients]) -> list[dict[str, Any]]:
    """The recorded sweeps keep the default and the winner only: is the faster one predicted to be the faster one?"""
    found: list[dict[str, Any]] = []
    for path in sorted((RESULTS / "sweeps").glob("*.json")):
        sweep = json.loads(path.read_text(encoding="utf-8"))
        row: dict[str, Any] = {"file": path.name, "tried": sweep["tried"]}
        default, best = sweep["default"], sweep["best"]
        if default["config"] == best["config"]:
            found.append({**row, "result": "the default won; the times of the others were not kept"})
            continue
        planner = Target(sweep["op"], sweep["arch"]).planner()
        predictor = Predictor(sweep["op"], sweep["shapes"], chip, without[sweep["op"]])
        try:
            first, second = (predictor.predict(planner.plan(each["config"])).us for each in (default, best))
        except Refused as refused:
            found.append({**row, "result": f"a configuration is none any more: {refused}"})
            continue
        row |= {
            "winner_over_default": {"measured": round(1 / sweep["speedup"], 4), "predicted": round(second / first, 4)}
        }
        found.append(row)
    return found


def assemble(calls: Sequence[Measured], when: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """The calibration file and the check file."""
    points = [call.point for call in calls if not call.left_out]
    rooflines = [call.roofline_us for call in calls if not call.left_out]
    measured = [point.measured_us for point in points]
    chip = rates(ARCH)
    found = fit(points, chip)
    ops = sorted({call.point.group for call in calls})  # of one that is left out, the others are all
    without = {op: fit([point for point in points if point.group != op], chip) for op in ops}
    alone = [predict(point.launches, chip, without[point.group]).us for point in points]
    files = sorted({call.file for call in calls})
    rows = [
        {
            "op": point.group,
            "case": point.label,
            "measured_us": point.measured_us,
            "predicted_us": round(predicted, 3),
            "factor": round(predicted / point.measured_us, 3),
            "bound": predict(point.launches, chip, without[point.group]).bound,
        }
        for point, predicted in zip(points, alone, strict=True)
    ]
    overall = {
        "without the operator": errors(alone, measured),
        "fitted on it too": errors(us(points, chip, found), measured),
        "uncalibrated": errors(us(points, chip, Coefficients()), measured),
        "roofline": errors(rooflines, measured),
    }
    across = {"model": spearman(alone, measured), "roofline": spearman(rooflines, measured)}
    calibration = {
        "calibration_schema": CALIBRATION_SCHEMA,
        "date": when.date().isoformat(),
        "arch": ARCH,
        "device": DEVICE,
        "sources": files,
        "calls": len(points),
        "coefficients": rounded(found),
        "without": {op: rounded(coefficients) for op, coefficients in without.items()},
    }
    ranked = ranking(Calibration.model_validate(calibration))
    parts = ranking(Calibration.model_validate(calibration), in_part()) if in_part() else []
    check = {
        **head(when),
        "what": "predicted against measured (cold L2, graph replay), with coefficients found without the operator",
        "arch": ARCH,
        "device": DEVICE,
        "files": files,
        "calls": len(points),
        "operators": len(ops),
        "left_out": [
            {"op": call.point.group, "case": call.point.label, "why": call.left_out} for call in calls if call.left_out
        ],
        "error": overall,
        "spearman_over_everything": {name: None if rank is None else round(rank, 4) for name, rank in across.items()},
        "by_operator": by_operator(points, chip, without),
        "sweeps": sweeps(chip, without),
        "ranking": ranked,
        "ranking_in_part": parts,
        "effects_in_the_notes": noted_pairs(ARCH, without),
        "not_scored": [
            *(
                []
                if ranked
                else ["rank correlation within a sweep, and the first five: no sweep of a space was recorded"]
            ),
            "sm_100a: there are no times of a B200",
        ],
        "cases": rows,
    }
    return calibration, check


def rounded(coefficients: Coefficients) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in coefficients.as_dict().items()}


def main(
    write: Annotated[bool, typer.Option("--write", help="Keep the calibration and the check file.")] = False,
) -> None:
    """Fit the model to the result files, print how near it comes, and with --write keep both files."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    when = datetime.now(UTC)
    calibration, check = assemble(measured_calls(), when)
    out.print(f"{check['calls']} calls of {check['operators']} operators, {len(check['left_out'])} left out")
    for name, error in check["error"].items():
        out.print(
            f"{name:22} off by {error['median']:.1%} (median), {error['p90']:.1%} (p90), {error['most']:.0%} (most)"
        )
    for op, row in check["by_operator"].items():
        error = row["error"]
        out.print(f"  {op:22} {row['calls']:3} calls: {error['median']:.1%}, most {error['most']:.0%}")
    worst = sorted(check["cases"], key=lambda row: -abs(math.log(row["factor"])))[:SHOWN_WORST]
    for row in worst:
        out.print(
            f"  {row['op']} {row['case']}: {row['predicted_us']:.2f} for {row['measured_us']:.2f} µs, {row['bound']}"
        )
    for row in check["sweeps"]:
        out.print(f"  {row}")
    for row in (*check["ranking"], *check["ranking_in_part"]):
        out.print(f"  {row['study']}: Spearman {row['spearman']}, best of the first five +{row['top_loss']:.1%}")
    for row in check["effects_in_the_notes"]:
        verdict = "told" if row["told"] else "NOT told"
        out.print(
            f"  {row['op']} {row['dims']} {row['changes']}: {row['predicted']:.3f} for {row['noted']:.3f}, {verdict}"
        )
    if write:
        replace_text(CALIBRATION, json.dumps(calibration, indent=1) + "\n")
        write_check(check_path(when, "h100-80gb-hbm3_cost_model"), check)
        out.print(f"written: {CALIBRATION}, {check_path(when, 'h100-80gb-hbm3_cost_model')}")


if __name__ == "__main__":
    typer.run(main)
