"""How good a search is, judged offline: a recorded sweep of a whole space is searched again and again by its times."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner.propose import Proposer, Seen
from dsv4.tuner.report import Report
from dsv4.tuner.space import Config, Space
from dsv4.tuner.target import Target

RECORDED_MIN = 200
DEFAULT_APART_MIN = 0.05
"""A space whose default is within this of the best says nothing about a search."""


@dataclass(frozen=True)
class Recording:
    """A sweep's times by configuration (None: it failed), keys as in ``canonical_json``. ``default``: the one of then,
    with which its searches begin; None: today's."""

    target: Target
    times_us: dict[str, float | None]
    default: Config | None = None

    @property
    def best_us(self) -> float:
        return min(us for us in self.times_us.values() if us is not None)

    def begin(self) -> KernelPlan:
        """The default of the sweep. Raises UsageError where the spec does not allow it any more."""
        try:
            return self.target.default() if self.default is None else self.target.planner().plan(self.default)
        except Refused as refused:
            raise UsageError(
                f"the sweep's default is none any more: {refused.reasons[0]}; valid: a newer sweep"
            ) from None

    def weakness(self, default_us: float | None) -> str | None:
        """Why a judgement by this recording would mean little, or None."""
        if len(self.times_us) < RECORDED_MIN:
            return f"{len(self.times_us)} configurations are recorded; a judgement wants {RECORDED_MIN}"
        if default_us is not None and default_us <= self.best_us * (1 + DEFAULT_APART_MIN):
            return f"the default is within {DEFAULT_APART_MIN:.0%} of the best"
        return None


@dataclass(frozen=True)
class Score:
    """One sampler: trials until within the stated share of the best, for each seed, and their median as a share of the
    recorded space."""

    sampler: str
    trials: list[int]
    median: float
    share: float


def recording(report: Report) -> Recording:
    """A study's times. Raises UsageError where it has none."""
    times = {canonical_json(row.config): row.us for row in report.rows}
    if not any(us is not None for us in times.values()):
        raise UsageError(f"study {report.study}: found no times; valid: a study that measured something")
    about = report.about
    target = Target(about["op"], about["arch"], None, about["dims"], about["variant"], about["pinned"])
    return Recording(target, times, dict(about["default"]))


def replay(
    recorded: Recording,
    samplers: Sequence[str],
    *,
    seeds: int = 20,
    within: float = 0.02,
    starts: Sequence[Config] = (),
    batch: int = 1,
    anywhere: bool = False,
    progress: Callable[[str, int], None] = lambda sampler, seed: None,
) -> list[Score]:
    """Search the recording with each sampler and seed. What a search needs to find is any configuration whose recorded
    time is within ``within`` of the best.

    ``starts`` are tried after the default; of ``batch`` configurations nothing is learnt before all are tried. With
    ``anywhere`` a configuration drawn by the seed stands in the default's place: what a search is worth where nobody
    knows a good one.
    """
    space, default = recorded.target.space(), recorded.begin()
    configs = [config for config in space.in_order() if canonical_json(config) in recorded.times_us]
    scores = []
    for sampler in samplers:
        trials = []
        for seed in range(seeds):
            begin = _drawn(space, configs, seed) if anywhere else default
            proposer = Proposer(space, begin, sampler, seed, starts, only=configs)
            trials.append(_trials(proposer, recorded.times_us, recorded.best_us * (1 + within), batch))
            progress(sampler, seed)
        median = statistics.median(trials)
        scores.append(Score(sampler, trials, median, median / len(configs)))
    return scores


def _drawn(space: Space, configs: Sequence[Config], seed: int) -> KernelPlan:
    """One of ``configs`` that fits, by ``seed``."""
    plans = (space.plan(config) for config in random.Random(seed).sample(configs, len(configs)))
    return next(plan for plan in plans if not isinstance(plan, Refused))


def _trials(proposer: Proposer, times_us: Mapping[str, float | None], goal_us: float, batch: int) -> int:
    taken: set[str] = set()
    waiting: list[Seen] = []
    while (plan := proposer.next(taken)) is not None:
        key = canonical_json(plan.config)
        taken.add(key)
        us = times_us[key]
        if us is not None and us <= goal_us:
            break
        waiting.append(Seen(plan.config, us))
        if len(waiting) >= batch:
            proposer.learn(waiting)
            waiting = []
    return len(taken)
