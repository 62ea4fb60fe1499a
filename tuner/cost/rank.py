"""Configurations of a target, ranked by what the model says that they take."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner.cost.counts import count
from dsv4.tuner.cost.model import Coefficients, Prediction, Rates, predict
from dsv4.tuner.protocol import Sizes, geometric_mean
from dsv4.tuner.shapes import workload_sizes
from dsv4.tuner.space import Config, Space
from dsv4.tuner.tried import changed

POOL_MAX = 1500
"""Configurations that are predicted of a space that has more; about half a millisecond each and shape."""
APART = 0.005
"""The model is no judge of smaller differences: of such configurations the one nearest to the default goes first."""
REFINED = 8
"""Best ones whose neighbours are looked at, too, where the pool is a sample."""


@dataclass(frozen=True)
class Ranked:
    """One configuration with its prediction: the geometric mean over the shapes, and each shape's."""

    plan: KernelPlan
    us: float
    shapes: tuple[Prediction, ...]


class Predictor:
    """Predicts one operator's kernels at the sizes of a sweep. Times in microseconds."""

    def __init__(self, op: str, sizes: Sequence[Sizes], chip: Rates, coefficients: Coefficients) -> None:
        usual = workload_sizes(op) or {}
        self.sizes: list[Mapping[str, int]] = [{**usual, **each} for each in sizes]
        self.chip, self.coefficients = chip, coefficients

    def predict(self, plan: KernelPlan) -> Ranked:
        """Raises SpecError for an operator that the model does not know and for a size that is missing."""
        shapes = [predict(count(plan, sizes), self.chip, self.coefficients) for sizes in self.sizes]
        return Ranked(plan, geometric_mean([max(each.us, 1e-3) for each in shapes]), tuple(shapes))

    def rank(self, space: Space, default: KernelPlan, *, pool_max: int = POOL_MAX, seed: int = 0) -> list[Ranked]:
        """Configurations that fit the chip, the fastest first: all of a small space, else ``pool_max`` of them, some
        near the default and the others drawn uniformly, and the neighbours of the best."""
        found: dict[str, Ranked] = {}
        self._add(found, space, self._pool(space, default, pool_max, seed))
        if space.tally().allowed > pool_max:
            best = order(found.values(), default)[:REFINED]
            self._add(found, space, (each for one in best for each in steps(space, one.plan.config)))
        return order(found.values(), default)

    def _pool(self, space: Space, default: KernelPlan, pool_max: int, seed: int) -> Iterable[Config]:
        if space.tally().allowed <= pool_max:
            yield from space.in_order()
            return
        yield from islice(space.near(default.config), pool_max // 3)
        rng = random.Random(seed)
        yield from (space.draw(rng) or default.config for _ in range(pool_max - pool_max // 3))

    def _add(self, found: dict[str, Ranked], space: Space, configs: Iterable[Config]) -> None:
        for config in configs:
            key = canonical_json(config)
            if key not in found and not isinstance(plan := space.plan(config), Refused):
                found[key] = self.predict(plan)


def steps(space: Space, config: Config) -> Iterable[Config]:
    """The configurations that differ from ``config`` in one tunable, or in what the constraints ask for besides."""
    for depth, name in enumerate(space.names):
        for value in space.values(depth, config):
            if value != config[name] and (near := space.nearest({**config, name: value})) is not None:
                yield near


def order(ranked: Iterable[Ranked], default: KernelPlan) -> list[Ranked]:
    """The fastest first. From the fastest on, those within ``APART`` go by how few tunables differ from the default."""
    left = sorted(ranked, key=lambda each: (each.us, canonical_json(each.plan.config)))
    found: list[Ranked] = []
    while left:
        alike = [each for each in left if each.us <= left[0].us * (1 + APART)]
        found += sorted(alike, key=lambda each: len(changed(each.plan.config, default.config)))
        left = left[len(alike) :]
    return found
