"""Which configuration wins, and whether it still does when it is measured again in turn with the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.runtime.artifact import Scalar
from dsv4.tuner.protocol import geometric_mean
from dsv4.tuner.tried import Tried, changed

SLOWER_MAX = 1.01
"""A winner may be this much slower at one of the measured shapes (what re-measurement resolves), never over all."""
NOISE_MIN = 0.005
"""Scores that are closer than this are equal, however quiet their rounds were; of two that are, the default serves."""


@dataclass(frozen=True)
class Verdict:
    """Default against winner, measured in turn. ``speedup`` is default / winner by the geometric mean over the
    shapes, ``compared`` what was measured at each of them."""

    wins: bool
    why: str
    speedup: float = 1.0
    compared: list[dict[str, Any]] = field(default_factory=list)


def fastest(tried: Sequence[Tried]) -> Tried | None:
    """Of those that passed and got all their rounds; None where there is none."""
    passed = [each for each in tried if each.score_us is not None and not each.is_slow]
    return min(passed, key=lambda each: (each.score_us or 0.0, each.key), default=None)


def finalist(tried: Sequence[Tried], default: Mapping[str, Scalar]) -> Tried | None:
    """The configuration to measure again; None where nothing passed.

    Of those that are as fast as the fastest within the noise of both, the one that differs from the default in the
    fewest tunables, then the first by spelling: so that two sweeps agree.
    """
    if (best := fastest(tried)) is None:
        return None
    passed = [each for each in tried if each.score_us is not None and not each.is_slow]
    tied = [each for each in passed if (each.score_us or 0.0) <= (best.score_us or 0.0) * (1 + noise(each, best))]
    return min(tied, key=lambda each: (len(changed(each.config, default)), each.key))


def noise(one: Tried, other: Tried) -> float:
    """Half the spread between the quartiles of the wider of two, as a share of its time."""
    return max(NOISE_MIN, one.spread / 2, other.spread / 2)


def judge(compared: list[dict[str, Any]]) -> Verdict:
    """The verdict on ratios winner / default (``ratio``) at each shape."""
    ratios = [each["ratio"] for each in compared]
    speedup = 1 / geometric_mean(ratios)
    if speedup < 1 + NOISE_MIN or max(ratios) > SLOWER_MAX:
        why = f"measured in turn with the default it is {speedup:.3f}× as fast, {max(ratios):.3f}× the time at worst"
        return Verdict(False, why, speedup, compared)
    return Verdict(True, f"{speedup:.3f}× as fast as the default, measured in turn", speedup, compared)
