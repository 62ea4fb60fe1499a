"""Where a search starts besides the default: what was tuned for the same operator at other shapes or flags."""

from __future__ import annotations

import math

from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Entry
from dsv4.tuner.space import Config
from dsv4.tuner.target import Target

SEEDS_MAX = 6


def neighbours(cache: KernelCache, target: Target) -> list[Config]:
    """Configurations of tuned entries of the operator on the arch, the nearest in their static dimensions first.

    Each once; those that do not fit the target's space are left to the search to drop.
    """
    planner = target.planner()

    def distance(entry: Entry) -> tuple[int, float, str]:
        question = entry.question
        flags = sum(question.variant.get(name) != value for name, value in planner.variant.items())
        octaves = sum(abs(math.log2(size / question.dims.get(name, size))) for name, size in planner.dims.items())
        return flags, octaves, entry.sha256

    entries = sorted(cache.tuned(target.op, target.arch), key=distance)
    found = {canonical_json(entry.config): dict(entry.config) for entry in entries}
    return list(found.values())[:SEEDS_MAX]
