"""A result file in a line: ours beside the best of the others, row by row and in the geometric mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OUR_PREFIX = "dsv4"
"""Peers whose name begins so are ours, in one form or another."""


@dataclass(frozen=True)
class Summary:
    """``cold``, ``warm``: geometric mean over the rows of the best peer's time over our best; ``None`` without a peer.

    ``behind``: of the ``compared`` rows, those in which the best peer is faster with a cold L2. ``peers``: those of the
    others that took part in a row.
    """

    cases: int
    compared: int
    cold: float | None
    warm: float | None
    behind: int
    peers: tuple[str, ...]


def summarise(result: Mapping[str, Any]) -> Summary:
    """Of a result as ``benchmarks.harness.result`` writes it. Ours is the fastest of our shown forms in each row."""
    ratios: dict[str, list[float]] = {"cold": [], "warm": []}
    taking_part: dict[str, None] = {}
    for case in result["cases"]:
        timed, others = took_part(result, case)
        ours = [name for name in timed if name in result["shown"] and name not in others]
        taking_part |= dict.fromkeys(others)
        if ours and others:
            for mode, values in ratios.items():
                values.append(_fastest(timed, others, mode) / _fastest(timed, ours, mode))
    cold, warm = (statistics.geometric_mean(values) if values else None for values in ratios.values())
    behind = sum(ratio < 1 for ratio in ratios["cold"])
    return Summary(len(result["cases"]), len(ratios["cold"]), cold, warm, behind, tuple(taking_part))


def took_part(result: Mapping[str, Any], case: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What was timed in a row, by peer, and the names of those that ours is held against: shown, and not ours."""
    timed = {name: peer for name, peer in case["peers"].items() if "skipped" not in peer}
    own = {result["ours"], *(name for name in timed if name.startswith(OUR_PREFIX))}
    return timed, [name for name in timed if name in result["shown"] and name not in own]


def _fastest(timed: Mapping[str, Any], names: Sequence[str], mode: str) -> float:
    return float(min(timed[name][mode]["median_us"] for name in names))
