"""The sweep: propose, claim, compile, check, measure, tell; at the end keep the winner if it is one.

Everything that was learnt is on disk the moment it is known (the study's storage, the artifacts' evidence), so that an
interrupted or killed sweep goes on where it ended, and several processes may work on one study.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.storages import BaseStorage

from dsv4.generator.console import CheckFailed
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import digest
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import decide, worker
from dsv4.tuner.bench import Bench, Measured, Measurer, Preflight
from dsv4.tuner.buckets import grouped
from dsv4.tuner.budget import Meter, since_best
from dsv4.tuner.builders import Ahead, Builder
from dsv4.tuner.choose import fastest, finalist
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.propose import Proposer, Seen
from dsv4.tuner.question import Settings, about, journal_path, require_entries, require_writable, study_name
from dsv4.tuner.space import Config, Space
from dsv4.tuner.storage import DATABASE_ERRORS, database_words, open_storage
from dsv4.tuner.study import Claim, Study
from dsv4.tuner.target import Target
from dsv4.tuner.tried import Tried, spelled
from dsv4.tuner.winners import Winner, at, decide_all

POLL_S = 0.5
"""Between looks at whether another worker has died, while it holds the last configurations."""


@dataclass
class Result:
    """What a sweep found. ``speedup`` is default / winner by the geometric mean over the shapes."""

    study: str
    tried: int
    slow: int
    failed: list[dict[str, Any]]
    default: dict[str, Any]
    best: dict[str, Any]
    chosen: bool
    why: str
    ended: str
    speedup: float = 1.0
    compared: list[dict[str, Any]] = field(default_factory=list)
    entry: str | None = None
    interrupted: bool = False
    winners: list[Winner] = field(default_factory=list)
    """What serves each bucket, where there are several; of a single one the fields above speak."""
    gpus: dict[str, int] = field(default_factory=dict)
    """Index of a GPU of its host → configurations that ran there; empty where that was not kept."""


@dataclass(frozen=True)
class Standing:
    """How a sweep stands, for whoever watches: the outcomes so far in their order, and what it is at (``doing``)."""

    meter: Meter
    default_us: float
    tried: Sequence[Tried]
    doing: str
    refused: int


GOES_ON = "what was measured is kept, the same command goes on from there"
Say = Callable[[str], None]
Watch = Callable[[Standing], None]
Claims = list[tuple[Claim, KernelPlan]]


def sweep(
    target: Target,
    settings: Settings,
    *,
    cache: KernelCache,
    builder: Builder,
    measure: Measurer = worker.run,
    storage: BaseStorage | None = None,
    say: Say = lambda text: None,
    watch: Watch = lambda standing: None,
    preflight: Preflight | None = None,
    seeds: Sequence[Config] = (),
) -> Result:
    """Tune ``target`` on this machine's GPU; something better than the default is kept in ``cache``.

    ``storage`` holds the study (None: a journal in the cache). With ``preflight`` a configuration that has findings
    there is never run on the GPU, and its artifact's evidence says so. ``seeds`` are tried after the default.

    Raises CheckFailed if the default itself cannot be built, is wrong or cannot be measured (there is then nothing to
    compare with) and if the disk is full or the storage fails; UsageError for an empty space, for a cache that cannot
    be written and for one whose entries are damaged or of another version. After an interrupt the result says so, and
    nothing is kept as a winner.
    """
    require_writable(cache)
    require_entries(cache, target.op, target.arch)
    space = target.space()
    try:
        return _sweep(target, space, settings, cache, builder, measure, storage, say, watch, preflight, seeds)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or cache.root})"
        raise CheckFailed(f"{reason}: {GOES_ON}") from error
    except DATABASE_ERRORS as error:
        raise CheckFailed(f"the study's storage failed ({database_words(error):.160}): {GOES_ON}") from error


def _sweep(
    target: Target,
    space: Space,
    settings: Settings,
    cache: KernelCache,
    builder: Builder,
    measure: Measurer,
    storage: BaseStorage | None,
    say: Say,
    watch: Watch,
    preflight: Preflight | None,
    seeds: Sequence[Config],
) -> Result:
    default = target.default()
    bench = Bench(
        builder, measure, settings.sizes, settings.device.name, settings.seed, settings.rounds, settings.limit_s,
        preflight, evidence=not settings.is_fake, retry=settings.retry_quarantined, policy=settings.policy,
    )  # fmt: skip
    (built,) = builder.build([default], lambda one: None)
    name = study_name(target, default, settings, built.artifact.name if built.artifact else "")
    if storage is None:
        storage = open_storage(journal_path(cache, target, settings.is_fake))
    encoding = Encoding(space)
    study = Study(
        storage, name, encoding, about=lambda: about(target, default, settings, space), lost_max=settings.lost_max
    )
    run = _Run(target, space, settings, study, bench, default, say, watch)
    ended, interrupted = "", False
    with study.attended():
        seed = settings.seed + study.company()  # workers of one seed would propose the same
        only = builder.only(space)
        run.is_whole = only is None
        own = [
            plan.config for plan in space.planner.bucketed()
        ]  # what serves some sizes untuned has to be beaten there
        run.proposers = [
            Proposer(space, default, settings.sampler, seed + number, [*own, *seeds], only=only)
            for number in range(len(run.groups))
        ]
        baseline = run.baseline()
        if before := len(study.tried()):
            say(f"going on with a study of {before} configurations")
        try:
            ended = run.explore(baseline)
        except KeyboardInterrupt:
            interrupted, ended = True, "it was interrupted"
        result = run.summary(baseline, ended)
        if interrupted:
            result.interrupted = True
            result.why = "interrupted: what was measured is kept, the same command goes on from there"
            return result
        if others := study.others():
            result.why = f"{others} configurations are still with other workers; the last one to finish decides"
            return result
        return run.decide(result, baseline, cache)


class _Run:
    """One process's part in a study. ``groups`` are the places in ``settings.sizes`` of each bucket's shapes, and each
    bucket has a proposer of its own: what is fast in one may be slow in another."""

    proposers: list[Proposer]
    is_whole: bool = True
    """Whether the builder can provide every configuration of the space."""

    def __init__(
        self,
        target: Target,
        space: Space,
        settings: Settings,
        study: Study,
        bench: Bench,
        default: KernelPlan,
        say: Say,
        watch: Watch,
    ) -> None:
        self.target, self.space, self.settings, self.study = target, space, settings, study
        self.bench, self.default, self.say, self.watch = bench, default, say, watch
        self.meter = Meter(settings.budget)
        self.groups = grouped(settings.served, settings.sizes)
        self._learnt: set[str] = set()

    def baseline(self) -> Measured:
        """The default, as the study knows it or measured now. Raises CheckFailed where it fails."""
        told = (tried for tried in self.study.tried() if tried.config == self.default.config and not tried.is_slow)
        known = next((tried for tried in told if tried.score_us is not None), None) or self.study.default()
        if known is not None:
            (built,) = self.bench.builder.build([self.default], lambda one: None)
            if built.artifact is None:
                raise CheckFailed(f"the default of {self.target.op} on {self.target.arch} fails: {built.error}")
            checked = known.detail.get("checked", {})
            return Measured(self.default, built.artifact, tuple(known.timings), checked=checked)
        (baseline,) = self.bench.outcomes([self.default])
        if baseline.failure:
            raise CheckFailed(
                f"the default of {self.target.op} on {self.target.arch} fails, tune it when it is right: "
                f"{baseline.failure}"
            )
        return replace(baseline, timings=tuple(self.study.keep_default(baseline.tried()).timings))

    def explore(self, baseline: Measured) -> str:
        """Batches until the budget is spent or the space is; why it ended, in words.

        With a builder that works ahead, the next batch is chosen and claimed before one is measured, and is compiled
        meanwhile: what is learnt from a batch counts from the one after the next.
        """
        ahead = self.bench.builder if isinstance(self.bench.builder, Ahead) else None
        held: Claims = []
        claims: Claims = []
        try:
            while True:
                tried = self._learn()
                self._show(baseline, tried, "choosing")
                free = self.study.recover()
                if why := self.meter.over(self._scores(tried), len(self.study.taken()) - len(held)):
                    return why
                claims, held, is_exhausted = held, [], False
                if not claims:
                    claims, is_exhausted = self._claim(free)
                    free = []
                if not claims:
                    if self.study.others():
                        time.sleep(POLL_S)
                    elif is_exhausted:
                        where = "of the space" if self.is_whole else "of which the cache has a kernel"
                        return f"every configuration {where} has been tried"
                    continue
                if ahead:
                    held, _ = self._claim(free)
                    ahead.announce([plan for _, plan in held])
                self._show(baseline, tried, f"{len(claims)} configurations{f', {len(held)} compiling' if held else ''}")
                self._measure(claims, baseline, tried)
                claims = []
        finally:
            for claim, _ in (*claims, *held):
                self.study.release(claim)
            if ahead:
                ahead.stop()

    def _learn(self) -> list[Tried]:
        tried = self.study.tried()
        fresh = [each for each in tried if each.key not in self._learnt]
        self._learnt.update(each.key for each in fresh)
        for proposer, places in zip(self.proposers, self.groups, strict=True):
            here = (at(each, places) for each in fresh)
            proposer.learn(Seen(each.config, each.score_us, rounds=1 if each.is_slow else 2, of=2) for each in here)
        return tried

    def _scores(self, tried: Sequence[Tried]) -> list[float | None]:
        """The outcomes as the bucket has them in which something better was found last."""
        each_bucket = ([at(each, places).score_us for each in tried] for places in self.groups)
        return min(each_bucket, key=since_best)

    def _claim(self, free: Sequence[Config]) -> tuple[list[tuple[Claim, KernelPlan]], bool]:
        """Up to a batch, first what was given up by others; and whether there is nothing more to propose."""
        budget = self.settings.budget.configurations
        taken = self.study.taken()
        claims: list[tuple[Claim, KernelPlan]] = []
        wanted = list(free)
        misses = 0
        while len(claims) < self.settings.batch and misses < self.settings.batch:
            if budget is not None and len(taken) >= budget:
                break
            proposer = self.proposers[len(taken) % len(self.proposers)]  # in turn, also with those of other workers
            plan = self.space.plan(wanted.pop(0)) if wanted else proposer.next(taken)
            if plan is None:
                return claims, True
            if isinstance(plan, Refused):
                continue
            claim = self.study.claim(plan.config, limit=budget)
            taken.add(Tried(plan.config, None).key)
            if claim is None:
                misses += 1
                continue
            claims.append((claim, plan))
        return claims, False

    def _measure(self, claims: Sequence[tuple[Claim, KernelPlan]], baseline: Measured, tried: Sequence[Tried]) -> None:
        fresh = [plan for _, plan in claims if plan.config != baseline.plan.config]
        prune = len(self.groups) == 1  # what is slow over all may be the fastest in a bucket
        incumbent = self._incumbent(tried, baseline) if prune else None
        results = [baseline, *(self.bench.outcomes(fresh, baseline, incumbent, prune) if fresh else [])]
        by_config = {digest(each.plan.config): each for each in results}
        for claim, plan in claims:
            each = by_config[digest(plan.config)]
            counts = self.study.tell(claim, each.tried(), each.rungs)
            outcome = each.failure or f"{each.score_us:.2f} µs{', given up as slow' if each.is_slow else ''}"
            self.say(f"{claim.number + 1}: {spelled(plan.config)}: {outcome}{'' if counts else ' (too late)'}")

    def _incumbent(self, tried: Sequence[Tried], baseline: Measured) -> KernelPlan | None:
        """The best so far; None while that is the default."""
        best = fastest(tried)
        if best is None or best.score_us is None or best.score_us >= baseline.score_us:
            return None
        plan = self.space.plan(best.config)
        return None if isinstance(plan, Refused) else plan

    def _show(self, baseline: Measured, tried: Sequence[Tried], doing: str) -> None:
        self.watch(Standing(self.meter, baseline.score_us, tried, doing, self.space.tally().refused))

    def summary(self, baseline: Measured, ended: str) -> Result:
        tried = self.study.tried()
        best = finalist(tried, self.default.config)
        default = decide.as_default(baseline)
        winner = {name: default[name] for name in ("config", "key", "us")}
        if best is not None and best.score_us is not None and best.score_us < baseline.score_us:
            winner = {"config": best.config, "key": best.detail["artifact"], "us": best.score_us}
        failed = [{"config": each.config, "why": each.failure} for each in tried if each.failure]
        why = "the default is the fastest that was found"
        slow = sum(each.is_slow for each in tried)
        ran_on = Counter(str(each.detail["gpu"]) for each in tried if each.detail.get("gpu") is not None)
        gpus = dict(sorted(ran_on.items()))
        return Result(self.study.name, len(tried), slow, failed, default, winner, False, why, ended, gpus=gpus)

    def decide(self, result: Result, baseline: Measured, cache: KernelCache) -> Result:
        """Measure winners and default again, in turn in one process; keep what still wins, bucket by bucket."""
        winners = decide_all(
            self.bench,
            self.space,
            self.settings,
            baseline,
            cache,
            groups=self.groups,
            tried=self.study.tried(),
            refused=self.study.about().get("refused", {}),
            study=self.study.name,
        )
        if len(winners) == 1:
            (only,) = winners
            result.best, result.chosen, result.why = only.best, only.chosen, only.why
            result.speedup, result.compared, result.entry = only.speedup, only.compared, only.entry
            return result
        kept = sum(winner.chosen for winner in winners)
        result.winners, result.chosen = winners, kept > 0
        result.why = f"{kept} of {len(winners)} buckets have a kernel that is faster than the default there"
        if self.settings.is_fake:
            result.why = "the times are made up, so nothing is kept"
        return result
