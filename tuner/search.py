"""The Optuna study: which configurations to try next, and a record on disk of all that were tried.

Proposals are made in memory, where one that the space does not contain costs a millisecond and teaches the sampler;
it never reaches the compiler. What goes to disk is each outcome, once, the moment it is known.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState, create_trial

from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.tuner.target import choices

MISSES_MAX = 32
"""Proposals in a row that are outside the space or known already, before the best-ranked untried one is taken."""


@dataclass(frozen=True)
class Tried:
    """One configuration with its outcome: microseconds, or why it is out."""

    config: dict[str, Scalar]
    score_us: float | None
    failure: str | None
    detail: dict[str, Any]


class Search:
    """Ask for configurations, tell what became of them. ``plans`` are in the order of their ranking.

    The journal at ``path`` holds studies by name; the same ``name`` goes on where an earlier run ended.
    """

    def __init__(self, path: Path, name: str, plans: list[KernelPlan], default: KernelPlan, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.plans = {_key(plan.config): plan for plan in plans}
        self._values = {name: {_text(value): value for value in found} for name, found in choices(plans).items()}
        self._space = {name: CategoricalDistribution(list(texts)) for name, texts in self._values.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
            self._record = optuna.create_study(
                storage=JournalStorage(backend), study_name=name, load_if_exists=True, direction="minimize"
            )
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            self._study = optuna.create_study(direction="minimize", sampler=sampler)
        self._running: dict[int, optuna.Trial] = {}
        self._asked: set[str] = set()
        for tried in self.tried():
            self._asked.add(_key(tried.config))
            if _key(tried.config) in self.plans:
                self._study.add_trial(self._finished(tried))
        if _key(default.config) in self.plans and _key(default.config) not in self._asked:
            self._enqueue(default)

    def propose(self, count: int) -> list[tuple[int, KernelPlan]]:
        """Up to ``count`` configurations not tried before, each with its trial's number. Empty: none is left."""
        found: list[tuple[int, KernelPlan]] = []
        misses = 0
        while len(found) < count and (untried := [key for key in self.plans if key not in self._asked]):
            if misses == MISSES_MAX:
                self._enqueue(self.plans[untried[0]])
                misses = 0
            trial = self._study.ask(self._space)
            key = _key({name: self._values[name][text] for name, text in trial.params.items()})
            if key not in self.plans:
                self._study.tell(trial, state=TrialState.PRUNED)  # the sampler learns to keep away
                misses += 1
            elif key in self._asked:
                self._study.tell(trial, state=TrialState.FAIL)  # no news: the sampler ignores it
                misses += 1
            else:
                self._asked.add(key)
                self._running[trial.number] = trial
                found.append((trial.number, self.plans[key]))
                misses = 0
        return found

    def tell(
        self, number: int, plan: KernelPlan, score_us: float | None, failure: str | None, detail: dict[str, Any]
    ) -> None:
        """Record one outcome: ``score_us``, or a ``failure`` in one line."""
        trial = self._running.pop(number)
        if score_us is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, score_us)
        outcome = {"config": plan.config, "score_us": score_us, "failure": failure, "detail": detail}
        state = TrialState.PRUNED if score_us is None else TrialState.COMPLETE
        self._record.add_trial(create_trial(state=state, value=score_us, user_attrs={"outcome": outcome}))

    def tried(self) -> list[Tried]:
        """Every configuration with an outcome, in the order of telling."""
        return [Tried(**trial.user_attrs["outcome"]) for trial in self._record.get_trials(deepcopy=False)]

    def best(self) -> Tried | None:
        """The fastest that passed."""
        passed = [tried for tried in self.tried() if tried.score_us is not None and _key(tried.config) in self.plans]
        return min(passed, key=lambda tried: tried.score_us or 0.0, default=None)

    def _enqueue(self, plan: KernelPlan) -> None:
        self._study.enqueue_trial({name: _text(value) for name, value in plan.config.items()})

    def _finished(self, tried: Tried) -> optuna.trial.FrozenTrial:
        return create_trial(
            state=TrialState.PRUNED if tried.score_us is None else TrialState.COMPLETE,
            value=tried.score_us,
            params={name: _text(value) for name, value in tried.config.items()},
            distributions=self._space,
        )


def _text(value: Scalar) -> str:
    """Categories are texts: 1 and True, or 1 and 1.0, would be one category otherwise."""
    return canonical_json(value)


def _key(config: dict[str, Scalar]) -> str:
    return canonical_json(config)
