"""Which configuration to try next: seeds first, then what a sampler proposes, made to fit. With ``tpe`` every second
one is a step from the best that is known.

Proposals cost a millisecond and are made in a study in memory; what a sampler proposes outside the space is moved to
the nearest configuration inside, so that nothing impossible and nothing twice is ever claimed, compiled or counted.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState, create_trial

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.space import Config, Space
from dsv4.tuner.steps import Steps
from dsv4.tuner.target import rank, ranked

SAMPLERS = ("tpe", "random", "grid", "cmaes", "gp")
_NEEDS = {"cmaes": "cmaes", "gp": "scipy"}
MISSES_MAX = 16
"""Proposals in a row that do not fit the chip or are known, before the nearest one is taken that is neither."""
STARTUP_TRIALS = 10


@dataclass(frozen=True)
class Seen:
    """One configuration with its outcome, as a sampler learns it: ``us`` is None for a failure; ``rounds`` is the
    number of timing rounds, fewer than ``of`` where it was given up as slow."""

    config: Config
    us: float | None
    rounds: int = 1
    of: int = 1


class Proposer:
    """Proposes for one process. ``seeds`` are tried first, in their order; those outside the space are left out.
    ``only`` restricts the proposals to these configurations (what was compiled elsewhere).

    Raises UsageError for a sampler that does not exist, cannot be had or does not apply to this space.
    """

    def __init__(
        self,
        space: Space,
        default: KernelPlan,
        sampler: str,
        seed: int,
        seeds: Sequence[Config] = (),
        *,
        only: Sequence[Config] | None = None,
    ) -> None:
        self.space, self.default, self.encoding = space, default, Encoding(space)
        self._only = None if only is None else {canonical_json(config): config for config in only}
        self._seeds = [each for each in (default.config, *seeds) if set(each) == set(space.names)]
        self._rng = random.Random(seed)
        self._one: Callable[[], Config | None]
        self._mirror: _Mirror | None = None
        self._steps: Steps | None = None
        self._is_step_next = True
        if sampler == "random":
            self._one = self._draw
        elif sampler == "grid":
            every = space.in_order()
            self._one = lambda: next(every, None)
        else:
            self._mirror = _Mirror(self.encoding, sampler, seed)
            self._one = self._from_sampler
        if sampler == "tpe":
            self._steps = Steps(space, self.encoding, default.config, seed)

    def learn(self, seen: Iterable[Seen]) -> None:
        """Outcomes that this object has not been told before, whoever measured them."""
        if self._mirror is None:
            return
        for each in seen:
            self._mirror.finished(each)
            if self._steps is not None and each.us is not None and each.rounds >= each.of:
                self._steps.learn(each.config, each.us)

    def next(self, taken: Set[str]) -> KernelPlan | None:
        """A configuration that fits and whose key (``canonical_json``) is not in ``taken``; None if none is left."""
        for config in self._seeds:
            if self._is_free(config, taken) and (plan := self._fits(config)) is not None:
                return self._chosen(plan)
        if (plan := self._step(taken)) is not None:
            return self._chosen(plan)
        crowded = 2 * len(taken) > self.space.tally().allowed  # most proposals would be known
        for _ in range(2 if crowded else MISSES_MAX):
            wanted = self._one()
            if wanted is None:
                break
            if self._is_free(wanted, taken) and (plan := self._fits(wanted)) is not None:
                return self._chosen(plan)
        left = next((plan for plan in self._nearest_first() if canonical_json(plan.config) not in taken), None)
        return None if left is None else self._chosen(left)

    def _step(self, taken: Set[str]) -> KernelPlan | None:
        """Every second time a step from the best, while there is one that is free."""
        self._is_step_next = not self._is_step_next
        if self._steps is None or self._is_step_next:
            return None
        for config in self._steps:
            if self._is_free(config, taken) and (plan := self._fits(config)) is not None:
                return plan
        return None

    def _is_free(self, config: Config, taken: Set[str]) -> bool:
        key = canonical_json(config)
        return key not in taken and (self._only is None or key in self._only)

    def _nearest_first(self) -> Iterator[KernelPlan]:
        if self._only is None:
            return ranked(self.space, self.default)
        plans = [self._fits(config) for config in self._only.values()]
        return iter(rank([plan for plan in plans if plan is not None], self.default))

    def _chosen(self, plan: KernelPlan) -> KernelPlan:
        if self._mirror is not None:
            self._mirror.running(plan.config)
        return plan

    def _fits(self, config: Config) -> KernelPlan | None:
        nearest = self.space.nearest(config)
        if nearest != config:  # a seed from another shape may break a constraint here
            return None
        plan = self.space.plan(config)
        if not isinstance(plan, Refused):
            return plan
        if self._mirror is not None:
            self._mirror.finished(Seen(config, None))  # the sampler learns to keep away
        return None

    def _draw(self) -> Config | None:
        return self.space.draw(self._rng)

    def _from_sampler(self) -> Config | None:
        assert self._mirror is not None
        if self._mirror.known < STARTUP_TRIALS:  # uniform over what is allowed, which a sampler knows nothing of
            return self._draw()
        return self.space.nearest(self._mirror.ask())


class _Mirror:
    """A study in memory for the sampler alone: what it asks for is never run as such, only what was made of it."""

    def __init__(self, encoding: Encoding, sampler: str, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.encoding = encoding
        self.moves = sampler == "cmaes"
        """CMA-ES knows only trials of its own: it is told the value of what its proposal was moved to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(direction="minimize", sampler=_sampler(sampler, encoding, seed))
        self._asked: optuna.Trial | None = None
        self._running: dict[str, int] = {}
        self.known = 0
        """Configurations with times, of which the sampler has been told."""

    def ask(self) -> Config:
        self._give_up()
        self._asked = self._study.ask(self.encoding.distributions)
        return self.encoding.config(self._asked.params)

    def running(self, config: Config) -> None:
        """``config`` is being measured: the sampler looks elsewhere meanwhile."""
        key = canonical_json(config)
        if self.moves and self._asked is not None:
            self._running[key] = self._asked.number
            self._asked = None
            return
        self._give_up()
        self._running[key] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(self._trial(config, TrialState.RUNNING))

    def finished(self, seen: Seen) -> None:
        self.known += seen.us is not None
        number = self._running.pop(canonical_json(seen.config), None)
        if number is not None:
            if self.moves and seen.us is not None:
                self._study.tell(number, seen.us)
                return
            self._study.tell(number, state=TrialState.FAIL)  # replaced by the one with the outcome
        if seen.us is None:
            self._study.add_trial(self._trial(seen.config, TrialState.PRUNED, constraints={"runs": 1.0}))
        elif seen.rounds < seen.of:
            halfway = {seen.rounds: seen.us}
            self._study.add_trial(self._trial(seen.config, TrialState.PRUNED, intermediate_values=halfway))
        else:
            self._study.add_trial(self._trial(seen.config, TrialState.COMPLETE, value=seen.us))

    def _give_up(self) -> None:
        if self._asked is not None:
            self._study.tell(self._asked, state=TrialState.FAIL)  # no news: the sampler ignores it
            self._asked = None

    def _trial(self, config: Config, state: TrialState, **more: object) -> optuna.trial.FrozenTrial:
        return create_trial(
            state=state,
            params=self.encoding.params(config),
            distributions=self.encoding.distributions,
            **more,
        )


def _sampler(name: str, encoding: Encoding, seed: int) -> optuna.samplers.BaseSampler:
    if name not in SAMPLERS:
        raise UsageError(f"--sampler: found '{name}'; valid: {', '.join(SAMPLERS)}")
    needed = _NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        raise UsageError(f"--sampler: {name} needs {needed}; valid: pip install {needed}, or {SAMPLERS[0]}")
    if name == "tpe":
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )
    if len(encoding.ordered) < 2:
        raise UsageError(
            f"--sampler: {name} wants two tunables whose values are numbers, here "
            f"{len(encoding.ordered)}; valid: {SAMPLERS[0]}, random, grid"
        )
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
