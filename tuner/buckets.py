"""Buckets: which calls a kernel that was tuned at some shapes serves.

A bucket bounds some dynamic dimensions; those of one study share no call. They are given by hand, or drawn between the
shapes that are measured: halfway by ratio, open at both ends, so that what was tuned nearest to a call serves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import isqrt

from dsv4.generator.console import UsageError
from dsv4.generator.spec import load_op
from dsv4.runtime.tuned import Bucket
from dsv4.tuner import shapes
from dsv4.tuner.protocol import Sizes

AUTOMATIC = "auto"
EVERYTHING: Bucket = {}


def parse(given: Sequence[str]) -> list[Bucket]:
    """``["T=1:64", "T=65:"]`` or ``["B=1:4,Sq=1:16"]``: one bucket a text. Raises UsageError where two overlap."""
    found = [shapes.bucket(text.split(",")) for text in given]
    for one, other in combinations(found, 2):
        if overlap(one, other):
            raise UsageError(
                f"--bucket: found {spelled(one)} and {spelled(other)}, which overlap; valid: buckets without a common "
                f"call (several bounds of one bucket are spelled NAME=LOW:HIGH,NAME=LOW:HIGH)"
            )
    return found


def overlap(one: Bucket, other: Bucket) -> bool:
    """Whether a call can lie in both: no dimension that both bound tells them apart."""
    for name in one.keys() & other.keys():
        (low, high), (low2, high2) = one[name], other[name]
        if (high is not None and high < low2) or (high2 is not None and high2 < low):
            return False
    return True


def spelled(bucket: Bucket) -> str:
    """``T=1:64,Sk=9:`` as on the command line; ``every call`` where nothing is bounded."""
    spans = (f"{name}={low}:{'' if high is None else high}" for name, (low, high) in bucket.items())
    return ",".join(spans) or "every call"


def grouped(buckets: Sequence[Bucket], sizes: Sequence[Sizes]) -> list[tuple[int, ...]]:
    """For each bucket the places in ``sizes`` of the shapes that lie in it.

    Raises UsageError for a shape outside all of them and for a bucket at which nothing is measured.
    """
    found: list[list[int]] = [[] for _ in buckets]
    for place, each in enumerate(sizes):
        inside = [number for number, bucket in enumerate(buckets) if shapes.outside(bucket, each) is None]
        if not inside:
            problem = shapes.outside(buckets[0], each)
            told = problem if len(buckets) == 1 else f"{_told(each)} lies outside all buckets"
            raise UsageError(f"--bucket: {told}; measure (--shape) what the winner is to serve")
        found[inside[0]].append(place)
    for bucket, places in zip(buckets, found, strict=True):
        if not places:
            raise UsageError(
                f"--bucket: found no shape in {spelled(bucket)}; valid: measure (--shape) one in each bucket"
            )
    return [tuple(places) for places in found]


def automatic(sizes: Sequence[Mapping[str, int]], names: Sequence[str]) -> list[Bucket]:
    """Disjoint buckets that hold every call, one for each shape of ``sizes`` that ``names`` can tell from the others.

    ``names`` are the dimensions that may be bounded; the one whose sizes lie farthest apart is divided first. The
    border between two neighbours is their geometric mean.
    """
    values = {name: sorted({each[name] for each in sizes}) for name in names}
    varying = [name for name in names if len(values[name]) > 1]
    if not varying:
        return [EVERYTHING]
    name = max(varying, key=lambda each: (values[each][-1] + 1) / (values[each][0] + 1))  # of equal ones the first
    borders = [isqrt(low * high) for low, high in pairwise(values[name])]
    spans = zip([0, *(border + 1 for border in borders)], [*borders, None], values[name], strict=True)
    left = [each for each in varying if each != name]
    return [
        {name: (low, high), **rest}
        for low, high, value in spans
        for rest in automatic([each for each in sizes if each[name] == value], left)
    ]


def bounded_names(op: str, sizes: Sequence[Mapping[str, int]]) -> list[str]:
    """The dimensions of the operator that a bucket may bound: those that vary and that each of ``sizes`` gives."""
    dims = load_op(op).dims
    return [name for name, dim in dims.items() if dim.dynamic and all(name in each for each in sizes)]


def _told(sizes: Sizes) -> str:
    return ",".join(f"{name}={size}" for name, size in sizes.items())
