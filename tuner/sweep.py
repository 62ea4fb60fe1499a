"""The sweep: propose, compile, check, measure, remember; at the end keep the winner if it is one.

Everything that was learnt is on disk the moment it is known (the study's journal, the artifacts' evidence), so that an
interrupted sweep goes on where it ended.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dsv4.generator.build.evidence import add_check, add_measurement, new_check
from dsv4.generator.console import CheckFailed, UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import digest
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import worker
from dsv4.tuner.builders import Builder, Built
from dsv4.tuner.protocol import Request, Sizes, Timing
from dsv4.tuner.search import Search
from dsv4.tuner.target import Target, spelled

SLOWER_MAX = 1.01
"""A winner may be this much slower at one of the measured shapes (what re-measurement resolves), never over all."""


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many configurations, or after so many seconds."""

    configurations: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``40`` configurations, or ``90s``, ``10m``, ``1.5h``. Raises UsageError."""
        if re.fullmatch(r"[1-9]\d*", text):
            return cls(configurations=int(text))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
        if not match or float(match[1]) == 0:
            raise UsageError(
                f"--budget: found '{text}'; valid: a number of configurations (40) or a time (90s, 10m, 1h)"
            )
        return cls(seconds=float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]])


class Measurer(Protocol):
    """Answers requests on the GPU (``worker.run``)."""

    def __call__(
        self, request: Request, *, limit_s: float, progress: Callable[[worker.Outcome], None] = ...
    ) -> list[worker.Outcome]: ...


@dataclass(frozen=True)
class Settings:
    """How to sweep. ``sizes`` are the shapes to measure, ``limit_s`` what one kernel may take for check and timing."""

    device: str
    sizes: tuple[Sizes, ...]
    budget: Budget
    batch: int = 8
    seed: int = 0
    rounds: int = 15
    compare_rounds: int = 41
    limit_s: float = 60.0
    bucket: dict[str, tuple[int, int | None]] = field(default_factory=dict)


@dataclass
class Result:
    """What a sweep found. ``speedup`` is default / winner by the geometric mean over the shapes."""

    tried: int
    failed: list[dict[str, Any]]
    default: dict[str, Any]
    best: dict[str, Any]
    chosen: bool
    why: str
    speedup: float = 1.0
    ratios: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False


Say = Callable[[str], None]
Preflight = Callable[[Path], list[str]]
"""Findings of an artifact that keep it from a GPU (``dsv4.generator.verify.emulator.preflight``)."""


def sweep(
    target: Target,
    settings: Settings,
    *,
    cache: KernelCache,
    builder: Builder,
    measure: Measurer = worker.run,
    say: Say = lambda text: None,
    preflight: Preflight | None = None,
) -> Result:
    """Tune ``target`` on this machine's GPU; something better than the default is chosen in ``cache``.

    With ``preflight`` a configuration that has findings there is never run on the GPU, and its artifact's evidence
    says so.

    Raises CheckFailed if the default itself cannot be built, is wrong or cannot be measured: there is then nothing to
    compare with. After an interrupt the result says so, and nothing is chosen.
    """
    default = target.default()
    plans, _ = target.configurations()
    plans = builder.available(plans)
    bench = _Bench(settings, builder, measure, say, preflight)
    (baseline,) = bench.outcomes([default])
    if baseline.failure:
        raise CheckFailed(
            f"the default of {target.op} on {target.arch} fails, tune it when it is right: {baseline.failure}"
        )
    name = study_name(default, target, settings, baseline.artifact)
    journal = cache.root / "studies" / f"{target.op}.{target.arch}.journal"
    search = Search(journal, name, plans, default, settings.seed)
    before = len(search.tried())
    if before:
        say(f"going on with a study of {before} configurations")
    interrupted = False
    try:
        _explore(search, bench, settings, baseline, say)
    except KeyboardInterrupt:
        interrupted = True
    result = _summary(search, baseline)
    result.interrupted = interrupted
    if interrupted:
        result.why = "interrupted: what was measured is kept, the same command goes on from there"
        return result
    return _decide(result, target, settings, cache, bench, measure)


def study_name(default: KernelPlan, target: Target, settings: Settings, default_artifact: Path) -> str:
    """One study for one question: the compiled default's key stands for template, spec and toolchain."""
    question = [
        default.dims, default.variant, target.pinned,
        settings.device, list(settings.sizes), default_artifact.name,
    ]  # fmt: skip
    return f"{target.op}.{target.arch}.{digest(question)[:16]}"


@dataclass
class _Measured:
    """A configuration with its artifact and either timings or a failure."""

    plan: KernelPlan
    artifact: Path
    timings: tuple[Timing, ...]
    failure: str | None

    @property
    def score_us(self) -> float:
        return geometric_mean([timing.median_us for timing in self.timings])


class _Bench:
    """Builds and measures batches, and writes the evidence."""

    def __init__(
        self, settings: Settings, builder: Builder, measure: Measurer, say: Say, preflight: Preflight | None = None
    ) -> None:
        self.settings, self.builder, self.measure, self.say = settings, builder, measure, say
        self.preflight = preflight

    def outcomes(self, plans: Sequence[KernelPlan]) -> list[_Measured]:
        built = self.builder.build(plans, lambda one: None)
        grounded = {str(one.artifact): self._grounded(one.artifact) for one in built if one.artifact}
        ready = {str(one.artifact): one for one in built if one.artifact and not grounded[str(one.artifact)]}
        outcomes: dict[str, worker.Outcome] = {}
        if ready:
            request = Request(
                artifacts=tuple(ready),
                sizes=self.settings.sizes,
                seed=self.settings.seed,
                rounds=self.settings.rounds,
            )
            found = self.measure(request, limit_s=self.settings.limit_s, progress=self._record)
            outcomes = {outcome.artifact: outcome for outcome in found}
        return [self._measured(one, outcomes.get(str(one.artifact)), grounded.get(str(one.artifact))) for one in built]

    def _grounded(self, artifact: Path) -> str | None:
        """Why an artifact must not run on the GPU, or ``None``; a finding becomes evidence."""
        findings = self.preflight(artifact) if self.preflight else []
        if not findings:
            return None
        add_check(
            artifact, new_check("emulator", False, findings=findings[:8], seed=self.settings.seed, by="preflight")
        )
        return f"emulator: {findings[0]}"

    def _measured(self, one: Built, outcome: worker.Outcome | None, grounded: str | None) -> _Measured:
        if grounded and one.artifact is not None:
            return _Measured(one.plan, one.artifact, (), grounded)
        if outcome is None or one.artifact is None:
            return _Measured(one.plan, Path(), (), f"compile: {one.error}")
        failure = outcome.failure
        if failure is None and len(outcome.timings) != len(self.settings.sizes):
            failure = f"measured at {len(outcome.timings)} of {len(self.settings.sizes)} shapes"
        return _Measured(one.plan, one.artifact, tuple(outcome.timings), failure)

    def _record(self, outcome: worker.Outcome) -> None:
        """Evidence beside the artifact: a check that was made, or a kernel that hung or faulted in it."""
        folder = Path(outcome.artifact)
        device = outcome.device or self.settings.device
        if outcome.checked:
            detail = {**outcome.checked, "findings": outcome.checked["findings"][:8], "seed": self.settings.seed}
            add_check(folder, new_check("gpu", bool(detail.pop("ok")), device=device, **detail))
        if outcome.error and not outcome.error.startswith("OutOfMemoryError"):
            add_check(folder, new_check("gpu", False, device=device, findings=[outcome.error]))
        for timing in outcome.timings:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            add_measurement(folder, {"device": device, "when": when, "by": "tuner", **timing.model_dump()})


def _explore(search: Search, bench: _Bench, settings: Settings, baseline: _Measured, say: Say) -> None:
    """Batches until the budget is spent or the space is."""
    budget, done, began = settings.budget, 0, time.monotonic()
    while True:
        left = settings.batch if budget.configurations is None else budget.configurations - done
        if left <= 0 or (budget.seconds is not None and time.monotonic() - began > budget.seconds):
            return
        batch = search.propose(min(left, settings.batch))
        if not batch:
            say("every configuration of the space has been tried")
            return
        fresh = [plan for _, plan in batch if plan.config != baseline.plan.config]
        results = {digest(each.plan.config): each for each in (bench.outcomes(fresh) if fresh else [])}
        results[digest(baseline.plan.config)] = baseline
        for number, plan in batch:
            each = results[digest(plan.config)]
            detail = {"artifact": each.artifact.name, "timings": [timing.model_dump() for timing in each.timings]}
            search.tell(number, plan, None if each.failure else each.score_us, each.failure, detail)
            done += 1
            outcome = each.failure or f"{each.score_us:.2f} µs"
            say(f"{done}: {spelled(plan.config)}: {outcome}")


def _summary(search: Search, baseline: _Measured) -> Result:
    tried, best = search.tried(), search.best()
    default = {"config": baseline.plan.config, "key": baseline.artifact.name, "us": baseline.score_us}
    winner = default
    if best is not None and best.score_us is not None and best.score_us < baseline.score_us:
        winner = {"config": best.config, "key": best.detail["artifact"], "us": best.score_us}
    failed = [{"config": each.config, "why": each.failure} for each in tried if each.failure]
    return Result(len(tried), failed, default, winner, False, "the default is the fastest that was found")


def _decide(
    result: Result, target: Target, settings: Settings, cache: KernelCache, bench: _Bench, measure: Measurer
) -> Result:
    """Measure winner and default again, in turn in one process; keep the winner if it still wins."""
    if result.best is result.default:
        return result
    plans, _ = target.configurations()
    winner = next(plan for plan in plans if plan.config == result.best["config"])
    default = target.default()
    first, second = (built.artifact for built in bench.builder.build([default, winner], lambda one: None))
    if first is None or second is None:
        result.why = "the winner could not be built again"
        return result
    request = Request(
        artifacts=(str(first), str(second)),
        sizes=settings.sizes,
        check=False,
        compare=True,
        seed=settings.seed + 1,
        rounds=settings.compare_rounds,
    )
    (outcome,) = measure(request, limit_s=settings.limit_s)
    result.ratios = [{"sizes": each["sizes"], "ratio": each["ratio"]} for each in outcome.compared]
    if outcome.error or len(result.ratios) != len(settings.sizes):
        result.why = f"the winner failed when it was measured again: {outcome.error or 'it left a shape out'}"
        return result
    ratios = [each["ratio"] for each in result.ratios]
    result.speedup = 1 / geometric_mean(ratios)
    if result.speedup <= 1 or max(ratios) > SLOWER_MAX:
        worst = f"{max(ratios):.3f}× the time at worst"
        result.why = f"measured in turn with the default it is {result.speedup:.3f}× as fast, {worst}"
        return result
    cache.refresh()
    cache.choose(
        target.op,
        target.arch,
        device=settings.device,
        dims=winner.dims,
        variant=winner.variant,
        bucket=settings.bucket,
        key=second.name,
    )
    result.chosen, result.best["key"] = True, second.name
    result.why = f"{result.speedup:.3f}× as fast as the default, measured in turn"
    return result


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
