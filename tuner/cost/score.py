"""How good the model's ranking is, judged on recorded sweeps, and how far times of one GPU tell those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.generator.console import UsageError
from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner.cost.calibration import Calibration
from dsv4.tuner.cost.model import rates
from dsv4.tuner.cost.rank import Predictor, Ranked, order
from dsv4.tuner.report import Report, Row
from dsv4.tuner.target import Target

SPEARMAN_AIM = 0.8
TOP = 5
TOP_WITHIN = 0.05
TOP_SHARE_AIM = 0.9
"""The aims: rank correlation within a sweep, and in which share of sweeps the best of the first ``TOP`` predicted is
within ``TOP_WITHIN`` of the best measured."""
SCORED_MIN = 30
"""A sweep with fewer configurations says little about a ranking."""


@dataclass(frozen=True)
class Recorded:
    """What of a study counts here: its name, what it says of itself, and its configurations with their times."""

    study: str
    about: Mapping[str, Any]
    rows: Sequence[Row]

    @classmethod
    def of(cls, report: Report) -> Recorded:
        return cls(report.study, report.about, report.rows)

    @property
    def device(self) -> str:
        return str(self.about.get("device", {}).get("name", ""))

    @property
    def question(self) -> str:
        return canonical_json({name: self.about[name] for name in ("op", "arch", "dims", "variant", "sizes")})

    def times_us(self) -> dict[str, float]:
        return {canonical_json(dict(row.config)): row.us for row in self.rows if row.us is not None}


@dataclass(frozen=True)
class Score:
    """One sweep. ``spearman`` is None where all times, or all predictions, are the same. ``top_loss``: the best of the
    times measured of the first predicted ones over the best of the sweep, less 1; ``default_loss`` the same of the
    default. ``error``: median of |predicted / measured - 1|. ``weak``: why the score means little, or None. What
    the sweep gave up as slow counts with its rough time."""

    study: str
    op: str
    arch: str
    device: str
    configurations: int
    left_out: int
    spearman: float | None
    top_loss: float
    default_loss: float | None
    error: float
    is_fake: bool
    weak: str | None

    @property
    def top_hits(self) -> bool:
        return self.top_loss <= TOP_WITHIN


@dataclass(frozen=True)
class Transfer:
    """Two sweeps of one question on two GPUs: rank correlation of the measured times of the configurations that both
    have, and what is lost on the second by taking the best of the first."""

    first: str
    second: str
    devices: tuple[str, str]
    configurations: int
    spearman: float | None
    loss: float


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, ties at their mean rank; None below two values and where one side is constant."""
    if len(first) < 2 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    one, other = _ranks(first), _ranks(second)
    middle = (len(first) - 1) / 2
    products = sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    squares = sum((a - middle) ** 2 for a in one) * sum((b - middle) ** 2 for b in other)
    return float(products / squares**0.5)


def _ranks(values: Sequence[float]) -> list[float]:
    by_size = sorted(range(len(values)), key=lambda place: values[place])
    ranks = [0.0] * len(values)
    begin = 0
    while begin < len(by_size):
        end = begin
        while end < len(by_size) and values[by_size[end]] == values[by_size[begin]]:
            end += 1
        for place in by_size[begin:end]:
            ranks[place] = (begin + end - 1) / 2
        begin = end
    return ranks


def score(report: Recorded, calibration: Calibration) -> Score:
    """The ranking of ``report``'s configurations against their times, with coefficients found without its operator.

    Raises UsageError where nothing can be compared: no times, or an operator that the model does not know.
    """
    about = report.about
    op, arch = str(about["op"]), str(about["arch"])
    device = report.device
    target = Target(op, arch, None, about["dims"], about["variant"], about["pinned"])
    predictor = Predictor(op, about["sizes"], rates(arch, device), calibration.of(without=op))
    measured: dict[str, float] = {}
    ranked: list[Ranked] = []
    times = [row for row in report.rows if row.us is not None]
    try:
        planner, default = target.planner(), target.default()
        for row in times:
            try:
                ranked.append(predictor.predict(planner.plan(row.config)))
                measured[canonical_json(row.config)] = float(row.us or 0)
            except Refused:  # the spec has changed since: it is counted as left out
                continue
    except SpecError as problem:
        raise UsageError(f"study {report.study}: {problem}") from None
    if not ranked:
        raise UsageError(f"study {report.study}: found no times of configurations that exist; valid: one that has some")
    best = min(measured.values())
    us = [measured[canonical_json(each.plan.config)] for each in ranked]
    first = order(ranked, default)[:TOP]
    errors = sorted(abs(each.us / one - 1) for each, one in zip(ranked, us, strict=True))
    of_default = measured.get(canonical_json(default.config))
    return Score(
        study=report.study,
        op=op,
        arch=arch,
        device=device,
        configurations=len(ranked),
        left_out=len(times) - len(ranked),
        spearman=spearman([each.us for each in ranked], us),
        top_loss=min(measured[canonical_json(each.plan.config)] for each in first) / best - 1,
        default_loss=None if of_default is None else of_default / best - 1,
        error=errors[len(errors) // 2],
        is_fake=device == FAKE_DEVICE,
        weak=None if len(ranked) >= SCORED_MIN else f"{len(ranked)} configurations; a score wants {SCORED_MIN}",
    )


def transfers(reports: Sequence[Recorded]) -> list[Transfer]:
    """Every two of ``reports`` that asked the same on different GPUs, in their order."""
    found = []
    for number, first in enumerate(reports):
        for second in reports[number + 1 :]:
            if first.question == second.question and first.device != second.device:
                found.append(transfer(first, second))
    return [each for each in found if each is not None]


def transfer(first: Recorded, second: Recorded) -> Transfer | None:
    """How far the times of ``first`` tell those of ``second``; None where they share no configuration."""
    one, other = first.times_us(), second.times_us()
    both = [key for key in one if key in other]
    if not both:
        return None
    chosen = min(both, key=lambda key: one[key])
    return Transfer(
        first=first.study,
        second=second.study,
        devices=(first.device, second.device),
        configurations=len(both),
        spearman=spearman([one[key] for key in both], [other[key] for key in both]),
        loss=other[chosen] / min(other[key] for key in both) - 1,
    )
