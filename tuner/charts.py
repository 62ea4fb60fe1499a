"""Charts as inline SVG: no script, no network, colours from the page's own variables (so that dark mode works)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 36
LETTER = 7
"""Pixels that a letter of a label takes, about."""


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the scale, about five."""
        if self.log and self.high / self.low > 8:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 1e4 else (1,)
            values = [m * 10.0**p for p in powers for m in steps]
        else:
            step = _round_step((self.high - self.low) / 5 or 1.0)
            first = math.ceil(self.low / step)
            values = [step * n for n in range(first, first + 12)]
        return [value for value in values if self.low <= value <= self.high]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if rough <= m * power * 1.0001)


def padded(values: Sequence[float], share: float = 0.06, log: bool = False) -> tuple[float, float]:
    """The range of ``values`` with some room at its ends."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** share if high > low else 1.1
        return low / room, high * room
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


@dataclass
class Svg:
    """Elements of one chart. Coordinates are pixels; every text is escaped."""

    title: str
    width: int = WIDTH
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def text(self, x: float, y: float, words: object, kind: str = "label", anchor: str = "start") -> None:
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(words))}</text>'
        )

    def dot(self, x: float, y: float, kind: str, hint: str, radius: float = 3.2) -> None:
        self.parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(hint)}</title></circle>'
        )

    def bar(self, x: float, y: float, width: float, height: float, kind: str, hint: str) -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="2">'
            f"<title>{escape(hint)}</title></rect>"
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str, hint: str = "") -> None:
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self.parts.append(f'<polyline class="{kind}" points="{where}">{title}</polyline>')

    def markup(self) -> Markup:
        head = f'<svg role="img" viewBox="0 0 {self.width} {self.height}" aria-label="{escape(self.title)}">'
        return Markup(head + "".join(self.parts) + "</svg>")  # every text in the parts was escaped


def axes(svg: Svg, x: Scale, y: Scale, x_name: str, y_name: str, spell: Callable[[float], str] = "{:g}".format) -> None:
    """Grid lines, numbers and names."""
    for tick in y.ticks():
        svg.line(x.start, y(tick), x.end, y(tick), "grid")
        if y(tick) > y.end + 8:  # there the axis has its name
            svg.text(x.start - 6, y(tick) + 4, spell(round(tick, 6)), anchor="end")
    for tick in x.ticks():
        svg.text(x(tick), y.start + 16, f"{tick:g}", anchor="middle")
    svg.line(x.start, y.start, x.end, y.start, "axis")
    svg.text((x.start + x.end) / 2, y.start + 31, x_name, "name", "middle")
    svg.text(x.start - 58, y.end + 2, y_name, "name")


def history(points: Sequence[tuple[int, float | None, bool, str]], default_us: float | None, title: str) -> Markup:
    """Times in the order of trying: ``(number, µs or None for a failure, slow, hint)``, the best so far as a line."""
    svg = Svg(title)
    scored = [us for _, us, _, _ in points if us is not None]
    if not scored:
        return empty(title, "no configuration has a time")
    low, high = padded([*scored, *([default_us] if default_us else [])], log=True)
    x = Scale(0, max(number for number, *_ in points) + 2, LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP + 14, log=True)
    axes(svg, x, y, "configuration, in the order of claiming", "µs")
    if default_us:
        svg.line(x.start, y(default_us), x.end, y(default_us), "default")
        svg.text(x.end, y(default_us) - 4, "default", "default-name", "end")
    best: float | None = None
    steps: list[tuple[float, float]] = []
    for number, us, slow, hint in points:
        if us is None:
            svg.text(x(number + 1), TOP + 8, "×", "failed", "middle")
            continue
        svg.dot(x(number + 1), y(us), "slow" if slow else "dot", hint)
        if not slow and (best is None or us < best):
            steps += [(x(number + 1), y(best))] if best is not None else []
            best = us
            steps.append((x(number + 1), y(us)))
    if best is not None:
        svg.path([*steps, (x.end, y(best))], "best")
    return svg.markup()


def bars(rows: Sequence[tuple[str, float, str]], title: str, unit: str) -> Markup:
    """Horizontal bars: ``(name, value, class)``."""
    if not rows:
        return empty(title, "nothing to show")
    row_height, name_width = 22, min(400, 24 + LETTER * max(len(name) for name, *_ in rows))
    svg = Svg(title, height=len(rows) * row_height + 12)
    high = max(value for _, value, _ in rows) or 1.0
    for place, (name, value, kind) in enumerate(rows):
        y = 6 + place * row_height
        width = value / high * (WIDTH - name_width - 110)
        svg.text(name_width - 8, y + 14, name, anchor="end")
        svg.bar(name_width, y + 2, width, row_height - 6, kind, f"{name}: {value:.4g} {unit}")
        svg.text(name_width + max(width, 0.5) + 6, y + 14, f"{value:.3g} {unit}")
    return svg.markup()


def parallel(
    names: Sequence[str],
    values: Sequence[Sequence[str]],
    lines: Sequence[tuple[Sequence[str], float, str]],
    title: str,
) -> Markup:
    """Parallel coordinates: ``names`` with their ``values`` in order; ``(a value for each name, µs, hint)``."""
    if not lines or not names:
        return empty(title, "nothing to show")
    svg = Svg(title, height=360)
    ends = (svg.height - 56.0, 24.0)
    low, high = padded([us for _, us, _ in lines], log=True)
    y_us = Scale(low, high, *ends, log=True)
    places = [LEFT + (WIDTH - LEFT - 60) * n / len(names) for n in range(len(names) + 1)]
    ranked = sorted(us for _, us, _ in lines)
    for chosen, us, hint in sorted(lines, key=lambda line: -line[1]):  # the fast ones on top
        points = []
        for x, value, listed in zip(places, chosen, values, strict=False):
            points.append(
                (x, Scale(0, max(len(listed) - 1, 1), *ends)(listed.index(value)) if len(listed) > 1 else sum(ends) / 2)
            )
        level = min(4, int(5 * ranked.index(us) / len(ranked)))
        svg.path([*points, (places[-1], y_us(us))], f"level{level}", hint)
    for row, (x, name, listed) in enumerate(zip(places, names, values, strict=False)):
        svg.line(x, ends[0], x, ends[1], "axis")
        svg.text(x, svg.height - (8 if row % 2 else 24), name, "name", "middle")  # neighbours would overlap
        shown = listed if len(listed) <= 12 else [listed[0], listed[len(listed) // 2], listed[-1]]
        for value in shown:
            at = Scale(0, max(len(listed) - 1, 1), *ends)(listed.index(value)) if len(listed) > 1 else sum(ends) / 2
            svg.text(x + 4, at + 4, value, "tick")
    svg.line(places[-1], ends[0], places[-1], ends[1], "axis")
    svg.text(places[-1], svg.height - 24, "µs", "name", "middle")
    for tick in y_us.ticks():
        svg.text(places[-1] + 4, y_us(tick) + 4, f"{tick:g}", "tick")
    return svg.markup()


def strip(
    name: str, values: Sequence[str], points: Sequence[tuple[str, float, bool, str]], default: str | None
) -> Markup:
    """Times by the value of one tunable: ``(value, µs, slow, hint)``; the best of each value is marked."""
    svg = Svg(f"{name} × time", width=350, height=210)
    low, high = padded([us for _, us, _, _ in points], log=True)
    y = Scale(low, high, svg.height - 40, 14, log=True)
    step = (svg.width - LEFT - 12) / len(values)
    for tick in y.ticks():
        svg.line(LEFT, y(tick), svg.width - 8, y(tick), "grid")
        svg.text(LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end")
    every = max(1, -(-len(values) // 10))
    for place, value in enumerate(values):
        x = LEFT + step * (place + 0.5)
        mine = [(us, slow, hint) for at, us, slow, hint in points if at == value]
        for number, (us, slow, hint) in enumerate(mine):
            spread = ((number * 7) % 11 - 5) / 11 * step * 0.6
            svg.dot(x + spread, y(us), "slow" if slow else "dot", hint, 2.4)
        if mine:
            best = min(us for us, _, _ in mine)
            svg.line(x - step * 0.35, y(best), x + step * 0.35, y(best), "best")
        if place % every == 0 or value == default:
            svg.text(x, svg.height - 24, value, "tick default-name" if value == default else "tick", "middle")
    svg.text(svg.width / 2, svg.height - 6, name, "name", "middle")
    return svg.markup()


def scatter(points: Sequence[tuple[float, float, bool, str]], x_name: str, y_name: str, title: str) -> Markup:
    """``(x, y, slow, hint)``, x logarithmic."""
    if not points:
        return empty(title, "nothing to show")
    svg = Svg(title, height=240)
    x = Scale(*padded([at for at, *_ in points], log=True), LEFT, WIDTH - RIGHT, log=True)
    y = Scale(0, max(at for _, at, _, _ in points) * 1.08 or 1.0, svg.height - BOTTOM, TOP + 8)
    axes(svg, x, y, x_name, y_name)
    for at, height, slow, hint in points:
        svg.dot(x(at), y(height), "slow" if slow else "dot", hint)
    return svg.markup()


def empty(title: str, why: str) -> Markup:
    """A chart of nothing, which says why."""
    svg = Svg(title, height=60)
    svg.text(WIDTH / 2, 34, why, "name", "middle")
    return svg.markup()
