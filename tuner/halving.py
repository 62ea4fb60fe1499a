"""Successive halving: all candidates get a few timing rounds, the better ones more, the best ones all.

The rule is the same wherever it is applied (in the measuring worker, in a fake of it), and looks at nothing but the
scores.
"""

from __future__ import annotations

from collections.abc import Mapping

REDUCTION = 3
"""One candidate of so many goes on to the next rung."""
NEAR = 1.05
"""What is within this factor of the best known goes on in any case: a few rounds do not tell more."""


def rungs(rounds: int, first: int = 5) -> tuple[int, ...]:
    """Timing rounds of each rung up to ``rounds``: 5, 15 for 15; 5, 15, 41 for 41."""
    found = [rounds]
    while found[0] // REDUCTION >= first:
        found.insert(0, found[0] // REDUCTION)
    return tuple(found)


def survivors(scores_us: Mapping[str, float], incumbent_us: float | None) -> list[str]:
    """Who goes on: the best third, and all near the best that is known, in the order of ``scores_us``."""
    if not scores_us:
        return []
    ranked = sorted(scores_us, key=lambda name: (scores_us[name], name))
    best_us = min([scores_us[ranked[0]], *([incumbent_us] if incumbent_us is not None else [])])
    kept = set(ranked[: -(-len(ranked) // REDUCTION)])
    if incumbent_us is not None:  # beyond all doubt slower than what is known: no third of them is worth a round
        kept = {name for name in kept if scores_us[name] <= incumbent_us * NEAR * NEAR}
    kept |= {name for name, us in scores_us.items() if us <= best_us * NEAR}
    return [name for name in scores_us if name in kept]
