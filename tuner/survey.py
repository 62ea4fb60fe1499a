"""How large a space is and why configurations are refused: exact where that is cheap, else from a uniform sample."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dsv4.generator.resources import Refused
from dsv4.tuner.space import Space

PLANNED_MAX = 2500
"""Configurations asked of the resource model, which takes about a millisecond for each."""


@dataclass(frozen=True)
class Reason:
    """One kind of refusal: its first example, word for word, and how many configurations it refuses.

    ``count`` is exact for constraints; for what the chip cannot take it is scaled up from the sample where ``exact`` is
    false.
    """

    text: str
    count: int
    exact: bool


@dataclass(frozen=True)
class Survey:
    """``points`` configurations in all, ``allowed`` of them by the constraints, ``fitting`` of those by the chip.

    ``sampled`` is 0 where every allowed configuration was planned, and ``fitting`` exact; else it is the size of the
    uniform sample from which ``fitting`` was estimated. A configuration may have several reasons.
    """

    points: int
    allowed: int
    fitting: int
    sampled: int
    reasons: tuple[Reason, ...]

    @property
    def refused(self) -> int:
        return self.points - self.fitting


def survey(
    space: Space, *, seed: int = 0, planned_max: int = PLANNED_MAX, progress: Callable[[int, int], None] | None = None
) -> Survey:
    """Look at a space that is not empty. ``progress(done, of)`` is called for each configuration planned."""
    tally = space.tally()
    exact = tally.allowed <= planned_max
    rng = random.Random(seed)
    drawn = list(space.in_order()) if exact else [space.draw(rng) or {} for _ in range(planned_max)]
    fitting = 0
    counts: Counter[str] = Counter()
    for done, config in enumerate(drawn, start=1):
        plan = space.plan(config)
        if isinstance(plan, Refused):
            counts.update(space.kinds(plan))
        else:
            fitting += 1
        if progress:
            progress(done, len(drawn))
    scale = tally.allowed / len(drawn)
    reasons = [Reason(space.examples[kind], count, True) for kind, count in tally.reasons.items()]
    reasons += [Reason(space.examples[kind], round(count * scale), exact) for kind, count in counts.items()]
    reasons.sort(key=lambda each: (-each.count, each.text))
    return Survey(
        tally.allowed + tally.refused, tally.allowed, round(fitting * scale), 0 if exact else len(drawn), tuple(reasons)
    )
