"""Tune what a model calls, the largest predicted share of its steps first, as many kernels at once as there are GPUs.

Everything that is learnt is kept as a sweep keeps it: after an interrupt the same command goes on, and what a measured
entry serves already is passed over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from optuna.storages import BaseStorage

from dsv4.generator.console import CheckFailed, UsageError
from dsv4.runtime.cache import KernelCache
from dsv4.tuner.budget import Budget
from dsv4.tuner.builders import Builder, Built
from dsv4.tuner.lanes import Lane, at_once, heed, interruptible
from dsv4.tuner.model_jobs import Job
from dsv4.tuner.question import Settings
from dsv4.tuner.seeds import in_turn, starts
from dsv4.tuner.sweep import GOES_ON, Result, Say, Standing, Watch, sweep
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
    lanes: Sequence[Lane],
    watching: Watching,
    storage: BaseStorage | None = None,
) -> list[Turn]:
    """Sweep ``jobs`` in their order, as many at the same time as there are ``lanes``; a turn for each, those that were
    not reached among them.

    ``settings.budget``: its seconds are for all jobs and are shared out by predicted share; its configurations and its
    patience are each study's. The shapes and buckets of ``settings`` are replaced by the job's. A kernel whose default
    fails is told and the others go on. After an interrupt the turns that it ended say so, and the rest was not reached.
    A lane that can have no worker any more is told and left out, and another takes its job; with the last one, the turn
    in which that showed has failed, and the rest was not reached. Raises UsageError for a cache that cannot be written.
    """
    run = _Run(jobs, settings, cache, watching, storage, lanes)
    if len(lanes) == 1:
        run.work(lanes[0])
    while len(lanes) > 1 and run.has_work:  # once more, where a job came back when the other lanes were done
        at_once([partial(run.work, lane) for lane in run.lanes], run.stopped)
    return run.turns()


class _Run:
    """What the lanes share: the jobs that are left, and what became of the others."""

    def __init__(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        cache: KernelCache,
        watching: Watching,
        storage: BaseStorage | None,
        lanes: Sequence[Lane],
    ) -> None:
        self.jobs, self.settings, self.cache, self.watching, self.storage = jobs, settings, cache, watching, storage
        self.lanes = list(lanes)
        self.width = len(self.lanes)
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._ended = ""
        self._until = None if settings.budget.seconds is None else time.monotonic() + settings.budget.seconds
        self._turns: dict[int, Turn] = {}
        for number, job in enumerate(jobs):
            if job.obstacle is not None:
                self._turns[number] = Turn(job, job.obstacle)
            elif job.is_answered:
                self._turns[number] = Turn(job, "measured entries serve every call")
        self._todo = [number for number in range(len(jobs)) if number not in self._turns]

    @property
    def has_work(self) -> bool:
        return bool(self._todo) and not self._ended

    def turns(self) -> list[Turn]:
        """One for each job, in their order."""
        return [self._turns.get(number, Turn(job, self._ended)) for number, job in enumerate(self.jobs)]

    def work(self, lane: Lane) -> None:
        """Take jobs and sweep them by ``lane``, until there are none or the time is spent."""
        while (taken := self._take()) is not None:
            number, budget = taken
            try:
                turn = self._turn(number, replace(self.settings, budget=budget), lane)
            except WorkerError as error:
                if self._leave_out(lane, number, error):
                    return
                self._ended = "not reached: no worker could be had before"
                turn = Turn(self.jobs[number], str(error), failed=True)
            except KeyboardInterrupt:  # beside a batch: while it is set up, or its winners are measured again
                turn = Turn(self.jobs[number], f"interrupted: {GOES_ON}", interrupted=True)
            self._turns[number] = turn
            if turn.interrupted:
                self._ended = "not reached: interrupted before"

    def _take(self) -> tuple[int, Budget] | None:
        """The next job and its part of the budget."""
        with self._lock:
            left_s = None if self._until is None else self._until - time.monotonic()
            if not self._ended and left_s is not None and left_s <= 0 and self._todo:
                self._ended = "the budget was spent before"
            if not self.has_work:
                return None
            rest = [self.jobs[number] for number in self._todo]
            number = self._todo.pop(0)
            seconds = _allotted(rest[0], rest, left_s, self.width)
            return number, replace(self.settings.budget, seconds=seconds)

    def _leave_out(self, lane: Lane, number: int, error: WorkerError) -> bool:
        """Go on without ``lane``, its job first; False where it is the last one."""
        with self._lock:
            if len(self.lanes) == 1:
                return False
            self.lanes.remove(lane)
            self._todo.insert(0, number)
        with self.watching(title(self.jobs[number]), self.settings.budget) as (say, _):
            say(f"a GPU is left out, the others go on: {error}")
        return True

    def _turn(self, number: int, settings: Settings, lane: Lane) -> Turn:
        job = self.jobs[number]
        mine = replace(settings, sizes=tuple(job.sizes), buckets=tuple(job.buckets))
        if len(mine.buckets) == 1:
            mine = replace(mine, loss=None)
        place = f"{number + 1} of {len(self.jobs)}: {title(job)}"
        cache, measure, mark = self.cache, lane.measure, ""
        if self.width > 1:  # what one thread reads of the cache, another must not forget meanwhile
            cache, measure = KernelCache(cache.root), interruptible(measure, self.stopped)
            mark = f"{number + 1} {job.op}: "
        with self.watching(place, settings.budget) as (say, show):

            def watch(standing: Standing) -> None:
                heed(self.stopped)
                show(standing)

            say(f"{place}, {100 * job.share:.1f} % of the steps (predicted), {len(job.sizes)} shapes")
            try:
                result = sweep(
                    job.target, mine, cache=cache, builder=lane.builder, measure=measure, storage=self.storage,
                    say=lambda text: say(f"{mark}{text}"), watch=watch,
                    seeds=in_turn(starts(cache, job.target, mine.sizes, mine.device.name)),
                )  # fmt: skip
            except (CheckFailed, DefaultFailed) as failure:
                return Turn(job, str(failure), failed=True)
            finally:
                self.cache.refresh()
        told = f"{result.why} ({result.tried} tried; {result.ended})"
        return Turn(job, told, result, interrupted=result.interrupted)


def _allotted(job: Job, rest: Sequence[Job], left_s: float | None, width: int) -> float | None:
    """The job's part of the time that ``width`` lanes have left, by its share of what is left to do."""
    if left_s is None:
        return None
    todo = sum(each.share for each in rest)
    part = job.share / todo if todo > 0 else 1.0
    return min(left_s, max(TURN_MIN_S, left_s * width * part))


def require_work(jobs: Sequence[Job]) -> Job:
    """The first job that can be tuned. Raises UsageError, in one line, where there is none."""
    for job in jobs:
        if job.obstacle is None:
            return job
    raise UsageError("model: found no call with a kernel to tune on this arch; valid: 'dsv4-tune coverage' lists why")
