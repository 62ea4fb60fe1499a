"""Steps from the best configuration that is known: one tunable changed at a time, by little or by a factor of two.

A sampler that learns from ten configurations of a space of hundreds has little to go by, while defaults are written by
people who know the kernel: what is better often lies one step away. Sizes of kernels divide one another, so that half
and twice a value are as near as the next one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.space import Config, Space


def steps_from(space: Space, encoding: Encoding, config: Mapping[str, Scalar]) -> Iterator[Config]:
    """The allowed configurations one step from ``config``: of each tunable that is a number the next lower and higher
    value, half and twice, of a flag or a word every other one; and what the constraints ask to be changed besides."""
    for depth, name in enumerate(space.names):
        if name not in encoding.values or name not in config:
            continue
        for value in _beside(space.values(depth, config), config[name], name in encoding.ordered):
            step = space.nearest({**config, name: value})
            if step is not None and step != config:
                yield step


def _beside(values: tuple[Scalar, ...], value: Scalar, is_number: bool) -> list[Scalar]:
    if not is_number or value not in values:
        return [other for other in values if other != value]
    ordered = sorted(values, key=float)
    place = ordered.index(value)
    near = [*ordered[max(0, place - 1) : place], *ordered[place + 1 : place + 2]]
    far = [other for other in ordered if float(other) in (2 * float(value), float(value) / 2)]
    return list(dict.fromkeys((*near, *far)))


class Steps:
    """The steps from the best one so far, each once, in an order drawn from ``seed``; before any time is known, from
    ``start``."""

    def __init__(self, space: Space, encoding: Encoding, start: Config, seed: int) -> None:
        self.space, self.encoding = space, encoding
        self._rng = random.Random(seed)
        self._best_us: float | None = None
        self._given: set[str] = set()
        self._left: list[Config] = []
        self._begin_at(start)

    def _begin_at(self, config: Config) -> None:
        self._left = list(steps_from(self.space, self.encoding, config))
        self._rng.shuffle(self._left)

    def learn(self, config: Config, us: float) -> None:
        """A configuration's time, measured in full."""
        if self._best_us is None or us < self._best_us:
            self._best_us = us
            self._begin_at(config)

    def __iter__(self) -> Iterator[Config]:
        """Steps that were not given before, until none is left around the best one."""
        while self._left:
            step = self._left.pop()
            key = canonical_json(step)
            if key not in self._given:
                self._given.add(key)
                yield step
