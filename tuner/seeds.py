"""Where a search starts besides the default: the spec's default kernels for some sizes, what was tuned for the same
operator at other shapes or flags, and what the cost model expects most of. A start is a guess: the search goes by what
it measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import SpecError
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Entry
from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.launches import known_ops
from dsv4.tuner.cost.model import rates
from dsv4.tuner.cost.rank import Predictor
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.space import Config
from dsv4.tuner.target import Target

SEEDS_MAX = 6
"""From each source."""
PREDICTED_POOL = 300
"""Configurations that are predicted for the sake of the seeds: about a second."""

TOLD_APART = 1e-6
"""Predictions that differ by less are the same one: the model does not know the tunables that differ."""


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


def predicted(
    target: Target,
    sizes: Sequence[Sizes],
    device: str = "",
    *,
    without: str | None = None,
    begin: KernelPlan | None = None,
) -> list[Config]:
    """The configurations that the cost model expects to be the fastest at ``sizes`` on the GPU called ``device``, the
    default left out, and of those that it cannot tell apart the one nearest to the default alone. ``without``: by what
    was calibrated on all operators but this one; ``begin`` stands in the default's place.

    None where it does not know the operator, or a size that the operator's workload leaves open.
    """
    if target.op not in known_ops():
        return []
    predictor = Predictor(target.op, sizes, rates(target.arch, device), shipped().of(without=without))
    try:
        default = predictor.predict(begin or target.default())
        ranked = predictor.rank(target.space(), default.plan, pool_max=PREDICTED_POOL)
    except SpecError:
        return []
    found = [default]
    for each in ranked:
        if len(found) <= SEEDS_MAX and all(abs(each.us / other.us - 1) > TOLD_APART for other in found):
            found.append(each)
    return [each.plan.config for each in found[1:]]


def starts(cache: KernelCache, target: Target, sizes: Sequence[Sizes], device: str = "") -> dict[str, list[Config]]:
    """Where to start, by source: the ``spec``'s own for some sizes, ``tuned`` elsewhere, ``predicted``; in this order
    they are tried. (What serves some sizes untuned has to be measured, or a winner could be slower.)"""
    sources: dict[str, Callable[[], list[Config]]] = {
        "spec": lambda: [dict(each.config) for each in target.planner().bucketed()],
        "tuned": lambda: neighbours(cache, target),
        "predicted": lambda: predicted(target, sizes, device),
    }
    return {source: find() for source, find in sources.items()}


def in_turn(found: dict[str, list[Config]]) -> list[Config]:
    """The starts of all sources as one list, each configuration once."""
    return list({canonical_json(config): config for configs in found.values() for config in configs}.values())
