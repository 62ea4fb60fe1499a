"""Rounds of several kernels in turn: what changes in the GPU meanwhile (clock, heat) changes for all of them, and each
is set beside a reference that was timed around it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from dsv4.tuner.protocol import Beside


@dataclass(frozen=True)
class Round:
    """Microseconds a call, and the moment at which half of the round was over."""

    us: float
    at_s: float


@dataclass(frozen=True)
class Turns:
    """The rounds of one kernel, what the reference would have taken at their moments (nothing where there is none)."""

    rounds_us: list[float]
    reference_us: list[float]


def in_turn(
    names: Sequence[str],
    round_us: Callable[[str], float | None],
    rounds: int,
    reference: str | None = None,
) -> dict[str, Turns]:
    """``rounds`` rounds of each of ``names`` (the reference is none of them), after one that does not count.

    A pass is a round of the reference, one of each of the others, forward and backward by turns, and again one of the
    reference, with which the next pass begins: R a b c R c b a R. Each round is set beside what the reference takes
    at its moment, which lies on the straight line between the two rounds of the reference around it. So a drift that is
    even within a pass drops out, and a leap falsifies one pass of all, which medians do not see.

    ``round_us(name)`` times one round; None where ``name`` failed, which then has no more turns and is left out of the
    answer. The reference must not fail.
    """

    def timed(name: str) -> Round | None:
        began_s = perf_counter()
        us = round_us(name)
        return None if us is None else Round(us, (began_s + perf_counter()) / 2)

    marks: list[Round] = []
    found: dict[str, list[Round]] = {name: [] for name in names if timed(name)}
    if reference is not None:
        timed(reference)
    for number in range(rounds + 1):
        if reference is not None and (mark := timed(reference)):
            marks.append(mark)
        if number == rounds:
            break
        for name in list(found)[:: -1 if number % 2 else 1]:
            if one := timed(name):
                found[name].append(one)
            else:
                del found[name]
    turns = {name: Turns([one.us for one in each], _between(each, marks)) for name, each in found.items()}
    if reference is not None:
        turns[reference] = Turns([mark.us for mark in marks], [mark.us for mark in marks])
    return turns


def _between(rounds: Sequence[Round], marks: Sequence[Round]) -> list[float]:
    """At the moment of each round, the line between the mark before it and the one after it."""
    lines = []
    for one, before, after in zip(rounds, marks, marks[1:], strict=False):
        share = (one.at_s - before.at_s) / (after.at_s - before.at_s)
        lines.append(before.us + share * (after.us - before.us))
    return lines


def beside(turns: Turns, anchor_us: float) -> Beside:
    """A kernel's rounds set beside the default's; ``anchor_us`` is what the study has for the default."""
    ratios = [us / default_us for us, default_us in zip(turns.rounds_us, turns.reference_us, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    default_us = statistics.median(turns.reference_us)
    return Beside(ratio=ratio, low=low, high=high, default_us=default_us, anchor_us=anchor_us)
