"""The end of a sweep: the winner is measured again in turn with the default, and what proves it goes into an entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.tuned import Bucket, Device, Entry, Policy, Question
from dsv4.tuner.bench import Bench, Measured
from dsv4.tuner.choose import Verdict, judge
from dsv4.tuner.protocol import Request, score_us
from dsv4.tuner.tried import Tried


def compare(bench: Bench, default: KernelPlan, winner: KernelPlan, rounds: int) -> tuple[Verdict, Path | None]:
    """Measure winner and default again, in turn in one process, with other inputs; and the winner's artifact."""
    first, second = (built.artifact for built in bench.builder.build([default, winner], lambda one: None))
    if first is None or second is None:
        return Verdict(False, "the winner could not be built again"), None
    request = Request(
        artifacts=(str(first), str(second)),
        sizes=bench.sizes,
        compare=True,
        seed=bench.seed + 1,
        rungs=(rounds,),
        policy=bench.policy,
    )
    (outcome,) = bench.measure(request, limit_s=bench.limit_s)
    if outcome.error or len(outcome.compared) != len(bench.sizes):
        why = f"the winner failed when it was measured again: {outcome.error or 'it left a shape out'}"
        return Verdict(False, why), second
    return judge(outcome.compared), second


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
