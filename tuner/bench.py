"""From configurations to what was measured of them: build, keep away what is known to be harmful, check, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dsv4.generator.build.evidence import add_check, add_measurement, new_check, read_evidence
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.tuned import Policy
from dsv4.tuner import halving, worker
from dsv4.tuner.builders import Builder, Built
from dsv4.tuner.protocol import Request, Sizes, Timing, score_us
from dsv4.tuner.tried import Tried, kept_of_check

Preflight = Callable[[Path], list[str]]
"""Findings of an artifact that keep it from a GPU (``dsv4.generator.verify.emulator.preflight``)."""


class Measurer(Protocol):
    """Answers requests on the GPU (``worker.run``)."""

    def __call__(
        self, request: Request, *, limit_s: float, progress: Callable[[worker.Outcome], None] = ...
    ) -> list[worker.Outcome]: ...


@dataclass
class Measured:
    """A configuration with its artifact and either timings or a failure, in one line."""

    plan: KernelPlan
    artifact: Path
    timings: tuple[Timing, ...] = ()
    failure: str | None = None
    is_slow: bool = False
    rungs: dict[int, float] = field(default_factory=dict)
    checked: dict[str, Any] = field(default_factory=dict)
    gpu: int | None = None

    @property
    def score_us(self) -> float:
        return score_us(self.timings)

    def tried(self) -> Tried:
        """As the study keeps it."""
        detail = {
            "artifact": self.artifact.name,
            "timings": [timing.model_dump() for timing in self.timings],
            "numeric_class": self.plan.numeric_class,
            "checked": kept_of_check(self.checked),
            "gpu": self.gpu,
        }
        return Tried(self.plan.config, None if self.failure else self.score_us, self.failure, self.is_slow, detail)


@dataclass(frozen=True)
class Bench:
    """``limit_s`` bounds the silence of one kernel. ``evidence`` says whether what is found is written beside the
    artifacts; ``retry`` that a kernel is run although it hung, faulted or was wrong before; ``policy`` how calls are
    timed."""

    builder: Builder
    measure: Measurer
    sizes: tuple[Sizes, ...]
    device: str
    seed: int = 0
    rounds: int = 15
    limit_s: float = 60.0
    preflight: Preflight | None = None
    evidence: bool = True
    retry: bool = False
    policy: Policy = field(default_factory=Policy)

    def outcomes(
        self,
        plans: Sequence[KernelPlan],
        default: Measured | None = None,
        incumbent: KernelPlan | None = None,
        prune: bool = True,
    ) -> list[Measured]:
        """What became of each, in their order: timed in turn with each other and with the ``default``, if there is one
        already, and the ``incumbent``. Without ``prune`` all get all the timing rounds."""
        built = self.builder.build([*plans, *([incumbent] if incumbent else [])], lambda one: None)
        built, best = built[: len(plans)], built[len(plans) :]
        kept_out = {str(one.artifact): self._kept_out(one.artifact) for one in built if one.artifact}
        ready = [name for name, why in kept_out.items() if why is None]
        beside = [] if default is None else [default.artifact]
        beside += [one.artifact for one in best if one.artifact and not self._quarantined(one.artifact)]
        outcomes: dict[str, worker.Outcome] = {}
        if ready:
            request = Request(
                artifacts=tuple(ready),
                sizes=self.sizes,
                beside=tuple(map(str, beside)),
                default_us=tuple(timing.us for timing in default.timings) if default else (),
                seed=self.seed,
                rungs=halving.rungs(self.rounds) if prune and default else (self.rounds,),
                policy=self.policy,
            )
            found = self.measure(request, limit_s=self.limit_s, progress=self.record)
            outcomes = {outcome.artifact: outcome for outcome in found}
        return [self._measured(one, outcomes.get(str(one.artifact)), kept_out.get(str(one.artifact))) for one in built]

    def _quarantined(self, artifact: Path) -> str | None:
        """How an artifact failed on the GPU before, or None. What is known of it counts for the same content
        everywhere: the folder's name is the hash of all that it was built from."""
        gpu = [check for check in read_evidence(artifact).checks if check.rung == "gpu"] if self.evidence else []
        if not gpu or gpu[-1].ok or self.retry:
            return None
        findings = gpu[-1].detail.get("findings") or ["it failed"]
        return f"quarantined since {gpu[-1].when}: {findings[0]}"

    def _kept_out(self, artifact: Path) -> str | None:
        """Why an artifact must not run on the GPU, or None."""
        if why := self._quarantined(artifact):
            return why
        findings = self.preflight(artifact) if self.preflight and self.evidence else []
        if not findings:
            return None
        add_check(artifact, new_check("emulator", False, findings=findings[:8], seed=self.seed, by="preflight"))
        return f"emulator: {findings[0]}"

    def _measured(self, one: Built, outcome: worker.Outcome | None, kept_out: str | None) -> Measured:
        if kept_out and one.artifact is not None:
            return Measured(one.plan, one.artifact, failure=kept_out)
        if outcome is None or one.artifact is None:
            return Measured(one.plan, Path(), failure=f"compile: {one.error}")
        failure = outcome.failure
        if failure is None and len(outcome.timings) != len(self.sizes):
            failure = f"measured at {len(outcome.timings)} of {len(self.sizes)} shapes"
        whole = {rounds: timings for rounds, timings in outcome.history.items() if len(timings) == len(self.sizes)}
        return Measured(
            one.plan,
            one.artifact,
            tuple(outcome.timings),
            failure,
            is_slow=failure is None and max(whole, default=0) < self.rounds,
            rungs={rounds: score_us(timings) for rounds, timings in whole.items()},
            checked=outcome.checked or {},
            gpu=outcome.gpu,
        )

    def record(self, outcome: worker.Outcome) -> None:
        """Evidence beside the artifact: a check that was made, or a kernel that hung or faulted in it."""
        if not self.evidence:
            return
        folder = Path(outcome.artifact)
        device = outcome.device or self.device
        if outcome.checked:
            detail = {**outcome.checked, "findings": outcome.checked["findings"][:8], "seed": self.seed}
            add_check(folder, new_check("gpu", bool(detail.pop("ok")), device=device, **detail))
        if outcome.error and not outcome.error.startswith("OutOfMemoryError"):
            add_check(folder, new_check("gpu", False, device=device, findings=[outcome.error]))
        for timing in outcome.timings:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            add_measurement(folder, {"device": device, "when": when, "by": "tuner", **timing.model_dump()})
