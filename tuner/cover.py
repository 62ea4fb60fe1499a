"""Several shapes, few kernels: the smallest set of configurations that stays within a stated loss at every shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from dsv4.tuner.protocol import geometric_mean

EXACT_MAX = 20_000
"""Sets of one size that are looked at before the greedy choice is taken instead."""


@dataclass(frozen=True)
class Cover:
    """``serves`` names the configuration for each shape, ``losses`` its time over the best at that shape (1.0: the
    best). ``is_smallest`` is false where the greedy choice was taken, which may need one more."""

    chosen: list[str]
    serves: list[str]
    losses: list[float]
    is_smallest: bool


def cover(times_us: Mapping[str, Sequence[float]], loss: float) -> Cover:
    """The fewest configurations so that at every shape one is within ``1 + loss`` of the best measured there.

    ``times_us`` maps a configuration to its time at each shape, all of one length from 1. Of sets of one size the one
    whose mean loss is the smallest; then the first by name.
    """
    shapes = len(next(iter(times_us.values())))
    best = [min(times[shape] for times in times_us.values()) for shape in range(shapes)]
    within = {
        name: frozenset(shape for shape in range(shapes) if times[shape] <= best[shape] * (1 + loss))
        for name, times in times_us.items()
    }
    useful = sorted(name for name, mine in within.items() if mine and not _is_dominated(name, within, times_us))
    for size in range(1, shapes + 1):
        sets = 1
        for step in range(size):
            sets = sets * (len(useful) - step) // (step + 1)
        if sets > EXACT_MAX:
            break
        found = [
            names
            for names in combinations(useful, size)
            if len(frozenset().union(*(within[n] for n in names))) == shapes
        ]
        if found:
            return _served(
                min(found, key=lambda names: (_mean_loss(names, times_us, best), names)), times_us, best, True
            )
    return _served(_greedy(useful, within, times_us, best), times_us, best, False)


def _is_dominated(name: str, within: Mapping[str, frozenset[int]], times_us: Mapping[str, Sequence[float]]) -> bool:
    """Whether another one serves all the same shapes and is faster at each of them."""
    mine = within[name]
    return any(
        mine <= theirs and all(times_us[other][shape] < times_us[name][shape] for shape in range(len(times_us[name])))
        for other, theirs in within.items()
        if other != name
    )


def _greedy(
    useful: Sequence[str],
    within: Mapping[str, frozenset[int]],
    times_us: Mapping[str, Sequence[float]],
    best: Sequence[float],
) -> tuple[str, ...]:
    chosen: list[str] = []
    left = set(range(len(best)))
    while left:
        name = min(useful, key=lambda each: (-len(within[each] & left), _mean_loss([each], times_us, best), each))
        chosen.append(name)
        left -= within[name]
    return tuple(chosen)


def _mean_loss(names: Sequence[str], times_us: Mapping[str, Sequence[float]], best: Sequence[float]) -> float:
    return geometric_mean([min(times_us[name][shape] for name in names) / best[shape] for shape in range(len(best))])


def _served(
    names: Sequence[str], times_us: Mapping[str, Sequence[float]], best: Sequence[float], is_smallest: bool
) -> Cover:
    serves = [min(names, key=lambda name: (times_us[name][shape], name)) for shape in range(len(best))]
    losses = [times_us[name][shape] / best[shape] for shape, name in enumerate(serves)]
    return Cover(list(names), serves, losses, is_smallest)
