"""The end of a sweep: the winner is measured again in turn with the default, and what proves it goes into an entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec.plan import Planner
from dsv4.runtime.artifact import Manifest, canonical_json
from dsv4.runtime.tuned import Bucket, Device, Entry, Policy, Question
from dsv4.tuner import peers
from dsv4.tuner.bench import Bench, Measured
from dsv4.tuner.choose import Verdict, judge
from dsv4.tuner.protocol import Request, Sizes, score_us
from dsv4.tuner.target import untuned
from dsv4.tuner.tried import Tried


@dataclass(frozen=True)
class Comparison:
    """A winner that is to be measured again at ``sizes``, in turn with what serves these untuned (the default, or the
    spec's own kernel for them), in one process and on other inputs. ``artifacts`` are theirs; None where one could not
    be built again."""

    sizes: tuple[Sizes, ...]
    artifacts: tuple[Path, Path] | None

    @property
    def winner(self) -> Path | None:
        return self.artifacts[1] if self.artifacts else None

    def measured(self, bench: Bench, rounds: int) -> Verdict:
        """The verdict on the winner at these sizes."""
        if self.artifacts is None:
            return Verdict(False, "the winner could not be built again")
        # A hang is remembered here, too.
        (outcome,) = bench.measure(self._request(bench, rounds), limit_s=bench.limit_s, progress=bench.record)
        if outcome.error or len(outcome.compared) != len(self.sizes):
            why = f"the winner failed when it was measured again: {outcome.error or 'it left a shape out'}"
            return Verdict(False, why)
        return judge(outcome.compared)

    def ratios(self, bench: Bench, rounds: int) -> dict[str, float]:
        """Winner / default by shape (as JSON), of those that it got to: what fails here is no fault at the shapes that
        it won at, and is not remembered."""
        if self.artifacts is None:
            return {}
        (outcome,) = bench.measure(self._request(bench, rounds), limit_s=bench.limit_s)
        return {canonical_json(each["sizes"]): each["ratio"] for each in outcome.compared}

    def _request(self, bench: Bench, rounds: int) -> Request:
        assert self.artifacts is not None
        return Request(
            artifacts=tuple(map(str, self.artifacts)),
            sizes=self.sizes,
            compare=True,
            seed=bench.seed + 1,
            rungs=(rounds,),
            policy=bench.policy,
        )


def comparisons(bench: Bench, planner: Planner, winner: KernelPlan, sizes: Sequence[Sizes]) -> list[Comparison]:
    """Have all built: one for each kernel that serves some of ``sizes`` untuned and is not the winner itself."""
    groups: dict[str, tuple[KernelPlan, list[Sizes]]] = {}
    for each in sizes:
        plan = untuned(planner, each)
        if plan.config != winner.config:
            groups.setdefault(canonical_json(plan.config), (plan, []))[1].append(each)
    found = []
    for plan, mine in groups.values():
        first, second = (built.artifact for built in bench.builder.build([plan, winner], lambda one: None))
        found.append(Comparison(tuple(mine), None if first is None or second is None else (first, second)))
    return found


def joined(verdicts: Sequence[Verdict], sizes: Sequence[Sizes]) -> Verdict:
    """One verdict over all of ``sizes``; where there is none, the winner is what serves anyhow."""
    for each in verdicts:
        if not each.compared:
            return each
    known = {canonical_json(each["sizes"]): each for verdict in verdicts for each in verdict.compared}
    return judge([known.get(canonical_json(each), {"sizes": dict(each), "ratio": 1.0}) for each in sizes])


def entry(
    manifest: Manifest,
    *,
    device: Device,
    bucket: Bucket,
    policy: Policy,
    verdict: Verdict,
    winner: Tried,
    default: Mapping[str, Any],
    tried: Sequence[Tried],
    refused: Mapping[str, int],
    study: str,
) -> Entry:
    """What the cache keeps of a winner."""
    question = Question.about(manifest, bucket, device, policy)
    failed = Counter(each.failure for each in tried if each.failure)
    proof = {
        "study": study,
        "tried": len(tried),
        "slow": sum(each.is_slow for each in tried),
        "score_us": winner.score_us,
        "timings": winner.detail.get("timings", []),
        "checked": winner.detail.get("checked", {}),
        "default": dict(default),
        "speedup": verdict.speedup,
        "compared": verdict.compared,
        "failed": dict(failed.most_common()),
        "refused": dict(refused),
    }
    if others := peers.of_entry(question, [each["sizes"] for each in verdict.compared]):
        proof["peers"] = others
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Entry(question=question, key=manifest.key, config=manifest.config, when=when, proof=proof).sealed()


def as_default(baseline: Measured, places: Sequence[int] | None = None) -> dict[str, Any]:
    """The default's configuration, key, time and timings, for results and entries; at the shapes in ``places`` only."""
    timings = baseline.timings if places is None else [baseline.timings[place] for place in places]
    return {
        "config": baseline.plan.config,
        "key": baseline.artifact.name,
        "us": score_us(timings),
        "timings": [timing.model_dump() for timing in timings],
    }
