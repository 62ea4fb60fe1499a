"""Tune what a model calls, one kernel after another, the largest predicted share of its steps first.

Everything that is learnt is kept as a sweep keeps it: after an interrupt the same command goes on, and what a measured
entry serves already is passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from optuna.storages import BaseStorage

from dsv4.generator.console import CheckFailed, UsageError
from dsv4.runtime.cache import KernelCache
from dsv4.tuner.bench import Measurer
from dsv4.tuner.budget import Budget
from dsv4.tuner.builders import Builder, Built
from dsv4.tuner.model_jobs import Job
from dsv4.tuner.question import Settings
from dsv4.tuner.seeds import in_turn, starts
from dsv4.tuner.sweep import GOES_ON, Result, Say, Watch, sweep
from dsv4.tuner.tried import spelled
from dsv4.tuner.worker import DefaultFailed, WorkerError

TURN_MIN_S = 20.0
"""The least time of a sweep whose share of the budget would be less, while there is time at all."""

Watching = Callable[[str, Budget], AbstractContextManager[tuple[Say, Watch]]]


@dataclass(frozen=True)
class Turn:
    """What became of a job, in words; ``result`` where it was swept; ``failed`` where its default is not right;
    ``interrupted`` where somebody wanted the end meanwhile."""

    job: Job
    told: str
    result: Result | None = None
    failed: bool = False
    interrupted: bool = False


def title(job: Job) -> str:
    """A job for a person: ``rms_norm d=1024 pdl=false``."""
    return f"{job.op} {spelled({**job.dims, **job.variant})}".strip()


def without_kernel(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that have a call which the cache has no kernel for, though one can be made."""
    return [job for job in jobs if job.obstacle is None and any(each.served == "missing" for each in job.covered)]


def build_defaults(jobs: Sequence[Job], builder: Builder, progress: Callable[[Built], None]) -> None:
    """Build the defaults of ``jobs``, those for some sizes alone too, so that a budget that ends early leaves no call
    without a kernel. One that cannot be built fails again when its turn comes, and is told then."""
    planners = [job.target.planner() for job in jobs]
    plans = [plan for planner in planners for plan in (planner.plan(), *planner.bucketed())]
    if plans:
        builder.build(plans, progress)


def tune_model(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    cache: KernelCache,
    builder: Builder,
    measure: Measurer,
    watching: Watching,
    storage: BaseStorage | None = None,
) -> list[Turn]:
    """Sweep ``jobs`` in their order; a turn for each, those that were not reached among them.

    ``settings.budget``: its seconds are for all jobs and are shared out by predicted share; its configurations and its
    patience are each study's. The shapes and buckets of ``settings`` are replaced by the job's. A kernel whose default
    fails is told and the others go on. After an interrupt the last turn that has a result says so, and the rest was not
    reached; where no worker can be had any more, the turn in which that showed has failed, and the rest was not
    reached. Raises UsageError for a cache that cannot be written.
    """
    until = None if settings.budget.seconds is None else time.monotonic() + settings.budget.seconds
    turns: list[Turn] = []
    ended = ""
    for number, job in enumerate(jobs):
        if job.obstacle is not None:
            turns.append(Turn(job, job.obstacle))
            continue
        if job.is_answered:
            turns.append(Turn(job, "measured entries serve every call"))
            continue
        left_s = None if until is None else until - time.monotonic()
        if not ended and left_s is not None and left_s <= 0:
            ended = "the budget was spent before"
        if ended:
            turns.append(Turn(job, ended))
            continue
        budget = replace(settings.budget, seconds=_allotted(job, jobs[number:], left_s))
        place = f"{number + 1} of {len(jobs)}: {title(job)}"
        try:
            turn = _turn(job, place, replace(settings, budget=budget), cache, builder, measure, watching, storage)
        except WorkerError as error:
            turn, ended = Turn(job, str(error), failed=True), "not reached: no worker could be had before"
        except KeyboardInterrupt:  # beside a batch: while it is set up, or its winners are measured again
            turn = Turn(job, f"interrupted: {GOES_ON}", interrupted=True)
        turns.append(turn)
        if turn.interrupted:
            ended = "not reached: interrupted before"
    return turns


def _allotted(job: Job, rest: Sequence[Job], left_s: float | None) -> float | None:
    """The job's part of the time that is left, by its share of what is left to do."""
    if left_s is None:
        return None
    todo = sum(each.share for each in rest if each.obstacle is None and not each.is_answered)
    part = job.share / todo if todo > 0 else 1.0
    return min(left_s, max(TURN_MIN_S, left_s * part))


def _turn(
    job: Job,
    place: str,
    settings: Settings,
    cache: KernelCache,
    builder: Builder,
    measure: Measurer,
    watching: Watching,
    storage: BaseStorage | None,
) -> Turn:
    mine = replace(settings, sizes=tuple(job.sizes), buckets=tuple(job.buckets))
    if len(mine.buckets) == 1:
        mine = replace(mine, loss=None)
    with watching(place, settings.budget) as (say, watch):
        say(f"{place}, {100 * job.share:.1f} % of the steps (predicted), {len(job.sizes)} shapes")
        try:
            result = sweep(
                job.target, mine, cache=cache, builder=builder, measure=measure, storage=storage, say=say, watch=watch,
                seeds=in_turn(starts(cache, job.target, mine.sizes, mine.device.name)),
            )  # fmt: skip
        except (CheckFailed, DefaultFailed) as failure:
            cache.refresh()
            return Turn(job, str(failure), failed=True)
    cache.refresh()
    told = f"{result.why} ({result.tried} tried; {result.ended})"
    return Turn(job, told, result, interrupted=result.interrupted)


def require_work(jobs: Sequence[Job]) -> Job:
    """The first job that can be tuned. Raises UsageError, in one line, where there is none."""
    for job in jobs:
        if job.obstacle is None:
            return job
    raise UsageError("model: found no call with a kernel to tune on this arch; valid: 'dsv4-tune coverage' lists why")
