"""Tunables as Optuna sees them: whole numbers by their place in the sorted list (a sampler may use their order), flags
and words as categories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.tuner.space import Config, Space


class Encoding:
    """Between configurations and Optuna's parameters. Tunables with one value are no parameters."""

    def __init__(self, space: Space) -> None:
        self.values: dict[str, list[Scalar]] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self.ordered: list[str] = []
        """Parameters whose order means something."""
        planner = space.planner
        for name in space.names:
            tunable = planner.spec.tunables[name]
            every = list(dict.fromkeys((*tunable.on(planner.arch), tunable.fixed(planner.arch))))
            values = [value for value in every if space.pinned.get(name, value) == value]
            if len(values) < 2:
                continue
            if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
                values.sort(key=float)
                self.ordered.append(name)
                self.distributions[name] = IntDistribution(0, len(values) - 1)
            else:  # texts: 1 and True would be one category
                self.distributions[name] = CategoricalDistribution([canonical_json(value) for value in values])
            self.values[name] = values

    def params(self, config: Mapping[str, Scalar]) -> dict[str, Any]:
        """Optuna's parameters of a configuration."""
        return {
            name: values.index(config[name]) if name in self.ordered else canonical_json(config[name])
            for name, values in self.values.items()
        }

    def config(self, params: Mapping[str, Any]) -> Config:
        """The tunables that ``params`` speak of."""
        found: Config = {}
        for name, value in params.items():
            values = self.values[name]
            place = value if name in self.ordered else [canonical_json(each) for each in values].index(value)
            found[name] = values[place]
        return found
