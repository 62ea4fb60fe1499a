"""Calibration: the coefficients with which the model comes nearest to measured times.

Least squares of log(predicted / measured), linear for large ones, every operator with the same weight however many
shapes it was measured at, and a pull towards the priors, so that a coefficient about which the measurements say nothing
stays what it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dsv4.generator.console import UsageError
from dsv4.tuner.cost.counts import LaunchCounts
from dsv4.tuner.cost.model import NAMES, Coefficients, Rates, predict

PRIOR_SPREAD = 0.5
"""Of a coefficient's logarithm: e^0.5 = 1.65 times more or less than the prior costs as much as ``ERROR_SPREAD``."""
ERROR_SPREAD = 0.2
SHARE_MAX = 1.0
"""No efficiency exceeds the chip's own figure."""


@dataclass(frozen=True)
class Point:
    """One measured call: its counts and the median in microseconds. ``group``: what is left out together."""

    group: str
    label: str
    launches: tuple[LaunchCounts, ...]
    measured_us: float


def fit(points: Sequence[Point], chip: Rates, prior: Coefficients | None = None) -> Coefficients:
    """The coefficients that fit ``points`` best. Raises UsageError for no points, and where scipy is missing."""
    try:
        from scipy.optimize import least_squares
    except ModuleNotFoundError:
        raise UsageError("calibration needs scipy: pip install scipy") from None
    if not points:
        raise UsageError("calibration: found no measured calls; valid: at least one")
    start = [math.log(getattr(prior or Coefficients(), name)) for name in NAMES]
    sizes = Counter(point.group for point in points)
    weights = [1 / math.sqrt(sizes[point.group]) for point in points]

    def residuals(logs: Sequence[float]) -> list[float]:
        tried = from_logs(logs)
        errors = [
            weight * tamed(math.log(predict(point.launches, chip, tried).us / point.measured_us) / ERROR_SPREAD)
            for weight, point in zip(weights, points, strict=True)
        ]
        return errors + [(log - before) / PRIOR_SPREAD for log, before in zip(logs, start, strict=True)]

    upper = [math.log(SHARE_MAX) if name.endswith("_share") else math.log(20.0) for name in NAMES]
    lower = [log - 4.0 for log in start]
    inside = [min(log, most - 1e-6) for log, most in zip(start, upper, strict=True)]
    return from_logs(least_squares(residuals, inside, bounds=(lower, upper)).x)


def tamed(error: float) -> float:
    """``error`` as it is near 0 and its root far away: its square grows linearly (pseudo-Huber), so that what the model
    has not understood at all does not bend what it has."""
    return math.copysign(math.sqrt(2 * (math.sqrt(1 + error * error) - 1)), error)


def from_logs(logs: Sequence[float]) -> Coefficients:
    return Coefficients(**{name: math.exp(log) for name, log in zip(NAMES, logs, strict=True)})
