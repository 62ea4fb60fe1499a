"""One study as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from dsv4.runtime.artifact import Scalar
from dsv4.tuner import charts
from dsv4.tuner.report import Report, Row
from dsv4.tuner.roofline import limits
from dsv4.tuner.roofline_chart import roofline
from dsv4.tuner.tried import changed, spelled

TEMPLATE = "report.html.j2"
SHOWN_MAX = 15
"""Configurations in the table of the fastest."""


def page(report: Report) -> str:
    """The page's HTML. Every text from the study is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("dsv4.tuner").joinpath(TEMPLATE).read_text())
    about_arch, about_device = report.about.get("arch", ""), str(report.about.get("device", {}).get("name"))
    scored = sorted((row for row in report.rows if row.us is not None), key=lambda row: row.us or 0.0)
    return template.render(
        report=report,
        about=report.about,
        facts=_facts(report),
        fastest=[_line(report, row) for row in scored if not row.is_slow][:SHOWN_MAX],
        best_vs_default=_best_vs_default(report),
        roofline=roofline(report),
        limits=limits(about_arch, about_device) if report.placed else [],
        peers=_peers(report),
        history=_history(report),
        importance=charts.bars([(n, 100 * v, "dot") for n, v in report.importance.items()], "importance", "%"),
        parallel=_parallel(report, scored),
        strips=_strips(report, scored),
        spread=charts.scatter(
            [(row.us or 0.0, 100 * row.spread, row.is_slow, _hint(report, row)) for row in scored],
            "µs", "% between quartiles", "spread",
        ),
        data=json.dumps(report.as_json(), default=str),
    )  # fmt: skip


def _facts(report: Report) -> list[tuple[str, str]]:
    about, device = report.about, report.about.get("device", {})
    slow = sum(row.is_slow for row in report.rows)
    failed = sum(row.failure is not None for row in report.rows)
    facts = [
        ("operator", f"{about.get('op')} on {about.get('arch')}"),
        ("dimensions", spelled(about.get("dims", {})) or "–"),
        ("flags", spelled(about.get("variant", {})) or "–"),
        ("shapes", "; ".join(spelled(sizes) for sizes in about.get("sizes", []))),
        ("device", f"{device.get('name')}, driver {device.get('driver')}, CUDA {device.get('cuda')}"),
        ("timing", f"{about.get('policy', {}).get('launch')} launches, {about.get('policy', {}).get('l2')} L2"),
        ("while timed", _conditions(report)),
        ("space", _space(about)),
        ("tried", f"{len(report.rows)}, of which {slow} given up as slow and {failed} failed"),
    ]
    if report.lost:
        facts.append(("retried", f"{report.lost} whose worker died"))
    return facts


def _conditions(report: Report) -> str:
    units = {"sm_clock_mhz": "MHz", "temperature_c": "°C", "power_w": "W"}
    words = [f"{low:.0f} to {high:.0f} {units[name]}" for name, (low, high) in report.gpu.items() if name in units]
    return ", ".join(words) or "clock, temperature and power were not recorded"


def _space(about: dict[str, Any]) -> str:
    fitting = f"{'about ' if about.get('sampled') else ''}{about.get('fitting', 0):,}"
    return (
        f"{about.get('points', 0):,} configurations, {about.get('allowed', 0):,} allowed by constraints, "
        f"{fitting} of these fit the chip"
    )


def _hint(report: Report, row: Row) -> str:
    apart = spelled(changed(row.config, report.about.get("default", {}))) or "the default"
    return f"#{row.number + 1} {f'{row.us:.3f} µs' if row.us is not None else row.failure}: {apart}"


def _line(report: Report, row: Row) -> dict[str, Any]:
    default_us = report.default.us if report.default else None
    return {
        "number": row.number + 1,
        "us": f"{row.us:.3f}",
        "gain": f"{default_us / row.us:.3f}×" if default_us and row.us else "–",
        "spread": f"{100 * row.spread:.1f} %",
        "config": spelled(changed(row.config, report.about.get("default", {}))) or "the default",
    }


def _best_vs_default(report: Report) -> Any:
    rows = []
    for place, sizes in enumerate(report.about.get("sizes", [])):
        for name, row, kind in (("default", report.default, "default-bar"), ("best", report.best, "best-bar")):
            if row is not None and place < len(row.shapes_us):
                rows.append((f"{spelled(sizes)}: {name}", row.shapes_us[place], kind))
    return charts.bars(rows, "best and default", "µs")


def _peers(report: Report) -> list[dict[str, Any]]:
    """Rows of the table, shape by shape; beside this study's best only where the GPU is the same."""
    rows: list[dict[str, Any]] = []
    for number, sizes in enumerate(report.about.get("sizes", [])):
        peers = [peer for peer in report.peers if peer.place == number]
        best_us = report.best.shapes_us[number] if report.best and number < len(report.best.shapes_us) else None
        for peer in peers:
            comparable = peer.same_device and best_us is not None
            rows.append(
                {
                    "shape": spelled(sizes),
                    "name": f"{peer.name} (this project's, then)" if peer.is_ours else peer.name,
                    "label": peer.label,
                    "us": f"{peer.us:.3f}",
                    "ratio": f"{peer.us / best_us:.3f}×" if comparable and best_us else "another device",
                    "where": f"{peer.date}, {peer.device}",
                }
            )
    return rows


def _history(report: Report) -> Any:
    points = [(row.number, row.us, row.is_slow, _hint(report, row)) for row in report.rows]
    return charts.history(points, report.default.us if report.default else None, "search history")


def _spelled(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(rows: list[Row]) -> dict[str, list[str]]:
    """The values that each tunable took, in order, for those that took several."""
    found: dict[str, list[str]] = {}
    for name in rows[0].config if rows else ():
        values = {row.config[name] for row in rows}
        if len(values) > 1:
            found[name] = [_spelled(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v))]
    return found


def _parallel(report: Report, scored: list[Row]) -> Any:
    values = _values(scored)
    lines = [([_spelled(row.config[name]) for name in values], row.us or 0.0, _hint(report, row)) for row in scored]
    return charts.parallel(list(values), list(values.values()), lines, "parallel coordinates")


def _strips(report: Report, scored: list[Row]) -> list[Any]:
    default = report.about.get("default", {})
    found = []
    for name, values in _values(scored).items():
        points = [(_spelled(row.config[name]), row.us or 0.0, row.is_slow, _hint(report, row)) for row in scored]
        found.append(charts.strip(name, values, points, _spelled(default[name]) if name in default else None))
    return found
