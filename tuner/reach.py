"""How far from the measured shapes a winner may serve.

A bucket's bounds lie far from the shapes that are measured in it, or are open. A kernel that is faster at those shapes
may be slower on the way to a bound: then it would lose there to not tuning. So a winner is also measured at the bounds,
halfway to them, and where one is open at some multiples of the last shape; it serves as far as it is not slower.
Between these sizes nobody has looked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from dsv4.runtime.tuned import Bucket
from dsv4.tuner.protocol import Sizes

OPEN = (2, 4)
"""Times the largest shape, at which a winner is measured where a bucket has no upper bound."""


@dataclass(frozen=True)
class Probe:
    """A size of ``name`` towards one end of its span, and the whole shape that is measured for it."""

    name: str
    end: Literal["low", "high"]
    value: int
    sizes: Sizes


def probes(bucket: Bucket, sizes: Sequence[Sizes]) -> list[Probe]:
    """Where a winner of ``bucket``, measured at ``sizes``, is to be measured besides: from the shapes outwards."""
    found: list[Probe] = []
    for name, (low, high) in bucket.items():
        first, last = min(sizes, key=lambda each: each[name]), max(sizes, key=lambda each: each[name])
        least, most = max(low, 1), last[name]
        down = [isqrt(least * first[name]), least] if least < first[name] else []
        up = [isqrt(most * high), high] if high is not None else [times * most for times in OPEN]
        found += [Probe(name, "low", at, _moved(first, name, at)) for at in _outwards(down, first[name])]
        found += [Probe(name, "high", at, _moved(last, name, at)) for at in _outwards(up, most)]
    return found


def _outwards(values: Sequence[int], start: int) -> list[int]:
    """Each once, without the shape's own."""
    return [value for value in dict.fromkeys(values) if value != start]


def _moved(sizes: Sizes, name: str, value: int) -> Sizes:
    """``sizes`` with another ``name``; what is as large (a sequence that is all tokens) stays so, where that is more
    than one."""
    old = sizes[name]
    return {each: value if each == name or (size == old and old > 1) else size for each, size in sizes.items()}


def narrowed(
    bucket: Bucket, sizes: Sequence[Sizes], looked: Sequence[Probe], is_fine: Callable[[Probe], bool]
) -> Bucket:
    """``bucket`` as far as the winner is fine: from its shapes to the last probe before one that is not."""
    found: Bucket = {}
    for name, (low, high) in bucket.items():
        values = [each[name] for each in sizes]
        reached = _end(low, min(values), name, "low", looked, is_fine)
        found[name] = (low if reached is None else reached, _end(high, max(values), name, "high", looked, is_fine))
    return found


def _end(
    bound: int | None, shape: int, name: str, end: str, looked: Sequence[Probe], is_fine: Callable[[Probe], bool]
) -> int | None:
    reached = shape
    for probe in (each for each in looked if (each.name, each.end) == (name, end)):
        if not is_fine(probe):
            return reached
        reached = probe.value
    return bound
