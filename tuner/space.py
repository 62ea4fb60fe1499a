"""The configurations of a target, counted and drawn without being listed.

A constraint is decided at the last tunable that it depends on. Below that, only the tunables that something later
still depends on matter, so that prefixes which agree in those share one count: a decision diagram. It gives the number
of configurations that the constraints allow, exact counts for each reason of refusal, uniform draws, and the nearest
allowed neighbour of any proposal. What a configuration takes of the chip is known only for whole ones, and asked of
the resource model when one is looked at.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.generator.spec.expression import Unevaluable, Value
from dsv4.generator.spec.op_schema import Constraint
from dsv4.generator.spec.plan import Planner, broken, chosen
from dsv4.generator.spec.resolve import holds
from dsv4.runtime.artifact import Scalar, canonical_json

Config = dict[str, Scalar]
_NUMBER = re.compile(r"\d[\d,._]*")
CONDITION = "a tunable that is held (--set) has no such value where its condition does not hold"


@dataclass(frozen=True)
class Tally:
    """What lies below a prefix: how many configurations are allowed, and how many each kind of reason refuses."""

    allowed: int = 0
    refused: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


class Space:
    """Every configuration that agrees with ``pinned`` and that the constraints allow.

    ``without`` leaves one constraint out (to find the one that empties a space). Nothing here raises for an empty
    space: ``allowed`` is then 0.
    """

    def __init__(
        self, planner: Planner, pinned: Mapping[str, Scalar] | None = None, *, without: Constraint | None = None
    ) -> None:
        self.planner, self.pinned = planner, dict(pinned or {})
        self.names = list(planner.spec.on(planner.arch))
        self.examples: dict[str, str] = {}
        """The first reason of each kind, word for word."""
        self._constraints = [item for item in planner.constraints if item is not without]
        self._decided: dict[int, list[_Decided]] = {}
        for item in self._constraints:
            decided = _Decided(planner, item, self.names)
            self._decided.setdefault(decided.depth, []).append(decided)
        self._live = [self._names_needed_from(depth) for depth in range(len(self.names) + 1)]
        self._tallies: dict[tuple[int, tuple[Scalar, ...]], Tally] = {}
        self._sizes: dict[tuple[int, tuple[Scalar, ...]], int] = {}
        self._plans: dict[str, KernelPlan | Refused] = {}

    @property
    def points(self) -> int:
        """Configurations before any constraint; tunables whose condition is false are not varied."""
        return self._size(0, {})

    def tally(self) -> Tally:
        """Counts over the whole space by the constraints alone, exact."""
        return self._below(0, {})

    def values(self, depth: int, config: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
        """The values that the tunable at ``depth`` may take after ``config``; none where ``pinned`` contradicts."""
        name = self.names[depth]
        tunable = self.planner.spec.tunables[name]
        applies = holds(tunable.when, {**self.planner.scope, **config})
        every = tunable.on(self.planner.arch) if applies else (tunable.fixed(self.planner.arch),)
        return tuple(value for value in every if self.pinned.get(name, value) == value)

    def plan(self, config: Mapping[str, Scalar]) -> KernelPlan | Refused:
        """The kernel of a whole configuration, or why the chip cannot take it. Remembered."""
        key = canonical_json(config)
        if key not in self._plans:
            try:
                self._plans[key] = self.planner.plan(config)
            except Refused as refused:
                self._plans[key] = refused
        return self._plans[key]

    def draw(self, rng: random.Random) -> Config | None:
        """One configuration, each of those that the constraints allow with the same probability; None if none is."""
        config: Config = {}
        for depth, name in enumerate(self.names):
            values = self.values(depth, config)
            weights = [self._below(depth + 1, {**config, name: value}).allowed for value in values]
            if not any(weights):
                return None
            config[name] = rng.choices(values, weights)[0]
        return config if self.tally().allowed else None

    def nearest(self, wanted: Mapping[str, Scalar]) -> Config | None:
        """The allowed configuration that keeps the values of ``wanted`` as far as it goes, from the first tunable on.

        A value that leads nowhere is replaced by the next one in the tunable's list. None for an empty space.
        """
        config: Config = {}
        for depth, name in enumerate(self.names):
            values = self.values(depth, config)
            asked = values.index(wanted[name]) if wanted.get(name) in values else 0
            for place in sorted(range(len(values)), key=lambda place: (abs(place - asked), place)):
                step = {**config, name: values[place]}
                if self._below(depth + 1, step).allowed:
                    config = step
                    break
            else:
                return None
        return config

    def near(self, start: Mapping[str, Scalar]) -> Iterator[Config]:
        """Every allowed configuration, those first that differ from ``start`` in the fewest tunables."""
        for changes in range(len(self.names) + 1):
            yield from self._differing(start, {}, 0, changes)

    def in_order(self) -> Iterator[Config]:
        """Every allowed configuration in the order of the spec's lists."""
        yield from self._walk({}, 0)

    def _walk(self, config: Config, depth: int) -> Iterator[Config]:
        if not self._below(depth, config).allowed:
            return
        if depth == len(self.names):
            yield config
            return
        for value in self.values(depth, config):
            yield from self._walk({**config, self.names[depth]: value}, depth + 1)

    def _differing(self, start: Mapping[str, Scalar], config: Config, depth: int, changes: int) -> Iterator[Config]:
        if not self._below(depth, config).allowed or changes > len(self.names) - depth:
            return
        if depth == len(self.names):
            yield config
            return
        name = self.names[depth]
        for value in self.values(depth, config):
            left = changes - (value != start.get(name))
            if left >= 0:
                yield from self._differing(start, {**config, name: value}, depth + 1, left)

    def _below(self, depth: int, config: Mapping[str, Scalar]) -> Tally:
        """The tally of what begins with ``config`` (the first ``depth`` tunables)."""
        reasons = [reason for item in self._decided.get(depth, ()) if (reason := item.broken(config))]
        if reasons:
            size = self._size(depth, config)
            return Tally(0, size, dict.fromkeys(map(self._kind, reasons), size))
        if depth == len(self.names):
            return Tally(allowed=1)
        key = depth, tuple(config[name] for name in self._live[depth])
        found = self._tallies.get(key)
        if found is None:
            found = self._tallies[key] = self._add_up(depth, config)
        return found

    def _add_up(self, depth: int, config: Mapping[str, Scalar]) -> Tally:
        values = self.values(depth, config)
        if not values:
            return Tally(0, 1, {self._kind(CONDITION): 1})
        parts = [self._below(depth + 1, {**config, self.names[depth]: value}) for value in values]
        reasons: Counter[str] = Counter()
        for part in parts:
            reasons.update(part.reasons)
        return Tally(sum(part.allowed for part in parts), sum(part.refused for part in parts), dict(reasons))

    def _size(self, depth: int, config: Mapping[str, Scalar]) -> int:
        if depth == len(self.names):
            return 1
        key = depth, tuple(config[name] for name in self._live[depth])
        if key not in self._sizes:
            values = self.values(depth, config)
            self._sizes[key] = sum(self._size(depth + 1, {**config, self.names[depth]: value}) for value in values)
        return self._sizes[key]

    def _kind(self, reason: str) -> str:
        """Reasons that differ in their numbers only are one kind."""
        kind = _NUMBER.sub("#", reason)
        self.examples.setdefault(kind, reason)
        return kind

    def kinds(self, refused: Refused) -> list[str]:
        """The kinds of a refusal's reasons."""
        return list(dict.fromkeys(map(self._kind, refused.reasons)))

    def _names_needed_from(self, depth: int) -> tuple[str, ...]:
        """The first ``depth`` tunables that a later constraint or condition depends on."""
        needed: set[str] = set()
        for later, decided in self._decided.items():
            if later > depth:
                needed.update(*(item.names for item in decided))
        for name in self.names[depth:]:
            when = self.planner.spec.tunables[name].when
            if when is not None:
                needed.update(chosen(when, self.planner.spec.let))
        return tuple(name for name in self.names[:depth] if name in needed)


class _Decided:
    """One constraint: the tunables that it depends on, and its verdicts so far by their values."""

    def __init__(self, planner: Planner, constraint: Constraint, order: list[str]) -> None:
        self.planner, self.constraint = planner, constraint
        needed = chosen(constraint.check, planner.spec.let)
        self.names = tuple(name for name in order if name in needed)
        self.depth = max((order.index(name) + 1 for name in self.names), default=0)
        self._verdicts: dict[tuple[Scalar, ...], str | None] = {}

    def broken(self, config: Mapping[str, Scalar]) -> str | None:
        """Why the constraint does not hold, or None."""
        key = tuple(config[name] for name in self.names)
        if key not in self._verdicts:
            self._verdicts[key] = self._evaluate({name: config[name] for name in self.names})
        return self._verdicts[key]

    def _evaluate(self, config: Config) -> str | None:
        scope: dict[str, Value] = {**self.planner.scope, **config}
        let = self.planner.spec.let
        for name, expr in let.items():
            if all(item in scope for item in expr.names):
                try:
                    scope[name] = expr(scope)
                except Unevaluable as problem:
                    return f"let.{name}: {problem}"
        return broken(self.constraint, scope, let)
