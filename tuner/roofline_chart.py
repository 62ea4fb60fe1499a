"""The roofline as a chart: achieved rates below what memory and tensor cores allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from dsv4.tuner.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, Svg, axes, empty
from dsv4.tuner.report import Report
from dsv4.tuner.roofline import Limit, Placement, limits
from dsv4.tuner.tried import spelled

TITLE = "roofline"


@dataclass(frozen=True)
class _Plane:
    """What is drawn over what. ``x`` and ``y`` read a placement, y with a time in place of its own; ``roof(x)`` is the
    most that y can be, with a corner at ``ridge`` where it has one."""

    x_name: str
    y_name: str
    x: Callable[[Placement], float]
    y: Callable[[Placement, float], float]
    roof: Callable[[float], float]
    ridge: float | None
    names: tuple[str, ...]


def roofline(report: Report) -> Markup:
    """The default's and the best's places at each shape, and those of peers on the same device.

    TFLOP/s over FLOP a byte where the operator has products; else GB/s over the MB of a call.
    """
    every = [each for placements in report.placed.values() for each in placements]
    if not every or not all(each.counts.get("bytes") for each in every):
        return empty(TITLE, "nothing to place")
    known = {limit.name: limit for limit in limits(report.about["arch"], str(report.about["device"]["name"]))}
    plane = _products(known) if all(each.counts.get("mma") for each in every) else _bytes(known)
    points = [
        (
            each,
            each.us,
            "default-bar" if label == "default" else "dot",
            f"{label}: {spelled(each.sizes)}, {each.us:.3f} µs",
        )
        for label, placements in report.placed.items()
        for each in placements
    ]
    by_place = next(iter(report.placed.values()))
    points += [
        (by_place[peer.place], peer.us, "peer", f"{peer.name}, {peer.date}: {peer.label}, {peer.us:.3f} µs")
        for peer in report.peers
        if peer.same_device
    ]
    return _drawn(plane, points, known["exp2"])


def _products(known: dict[str, Limit]) -> _Plane:
    hbm, mma = known["HBM"].per_us, known["MMA"].per_us
    return _Plane(
        "FLOP a byte", "TFLOP/s",
        x=lambda each: each.counts["mma"] / each.counts["bytes"],
        y=lambda each, us: each.counts["mma"] / us / 1e6,
        roof=lambda intensity: min(mma, intensity * hbm) / 1e6,
        ridge=mma / hbm, names=("HBM", "MMA"),
    )  # fmt: skip


def _bytes(known: dict[str, Limit]) -> _Plane:
    return _Plane(
        "MB of a call", "GB/s",
        x=lambda each: each.counts["bytes"] / 1e6,
        y=lambda each, us: each.counts["bytes"] / us / 1e3,
        roof=lambda _: known["HBM"].per_us / 1e3,
        ridge=None, names=("HBM",),
    )  # fmt: skip


def _drawn(plane: _Plane, points: list[tuple[Placement, float, str, str]], exp2: Limit) -> Markup:
    svg = Svg(TITLE)
    places = [(plane.x(each), plane.y(each, us)) for each, us, _, _ in points]
    low, high = min(x for x, _ in places) / 2, max(x for x, _ in places) * 2
    lowest, highest = min(y for _, y in places) / 2, max(plane.roof(high), *(y for _, y in places)) * 1.6
    x = Scale(low, high, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(lowest, highest, HEIGHT - BOTTOM, TOP + 14, log=True)
    axes(svg, x, y, plane.x_name, plane.y_name)
    corners = [low, *([plane.ridge] if plane.ridge and low < plane.ridge < high else []), high]
    line = [(max(at, _where(plane.roof, lowest, at)), plane.roof(at)) for at in corners]
    svg.path([(x(at), y(max(roof, lowest))) for at, roof in line], "roof", "what the chip allows")
    left_name = plane.names[0] if plane.ridge is None or low < plane.ridge else plane.names[-1]
    right_name = plane.names[-1] if plane.ridge is None or high > plane.ridge else plane.names[0]
    svg.text(x.end, y(plane.roof(high)) - 5, right_name, "name", "end")
    if left_name != right_name:
        svg.text(x.start + 8, y(max(plane.roof(low), lowest)) - 8, left_name, "name")
    for each, us, kind, hint in points:
        if kind == "dot" and each.counts.get("exp2"):
            ceiling = plane.y(each, each.counts["exp2"] / exp2.per_us)
            if lowest < ceiling < plane.roof(plane.x(each)):
                at = x(plane.x(each))
                svg.line(at - 14, y(ceiling), at + 14, y(ceiling), "ceiling")
        svg.dot(x(plane.x(each)), y(plane.y(each, us)), kind, hint, 4.0)
    return svg.markup()


def _where(roof: Callable[[float], float], lowest: float, at: float) -> float:
    """Where the roof comes into the chart: it grows with x or stays."""
    height = roof(at)
    return at * lowest / height if 0 < height < lowest and math.isfinite(height) else at
