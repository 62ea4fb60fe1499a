"""A prediction as a cache entry: which of the kernels that the emulator has passed is expected to be the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import load_arch
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.tuned import Bucket, Device, Entry, Policy, Question, any_device
from dsv4.tuner.cost.rank import Ranked
from dsv4.tuner.protocol import Sizes

MARGIN = 0.05
"""What a configuration has to be predicted to gain over the default before it serves in its place unmeasured."""
KEPT = 10
"""Configurations of the ranking that an entry keeps."""


@dataclass(frozen=True)
class Choice:
    """``artifact`` is None where the default is to go on serving; ``why`` says it in words."""

    artifact: Artifact | None
    ranked: Ranked | None
    gain: float
    why: str


def passed(cache: KernelCache, plan: KernelPlan) -> dict[str, Artifact]:
    """Artifacts of the plan's operator, dimensions and flags by configuration (``canonical_json``): those that were
    built from today's spec and whose newest run in the emulator found nothing, nor any other check."""
    found: dict[str, Artifact] = {}
    for artifact in cache.artifacts(plan.op, plan.arch):  # the newest first
        manifest = artifact.manifest
        same = (manifest.dims, manifest.variant, manifest.spec_sha256) == (plan.dims, plan.variant, plan.spec_sha256)
        if same and "emulator" in artifact.evidence().rungs() and artifact.failed_check() is None:
            found.setdefault(canonical_json(manifest.config), artifact)
    return found


def choose(
    ranked: Sequence[Ranked], default: Ranked, artifacts: Mapping[str, Artifact], margin: float = MARGIN
) -> Choice:
    """The first of ``ranked`` that is among ``artifacts``, if it is predicted to beat the default by ``margin``."""
    for each in ranked:
        artifact = artifacts.get(canonical_json(each.plan.config))
        if artifact is None:
            continue
        gain = default.us / each.us - 1
        if each.plan.config == default.plan.config:
            return Choice(None, each, 0.0, "the default is predicted to be the fastest that the emulator has passed")
        if gain < margin:
            why = f"{gain:.1%} over the default, as predicted, are less than the {margin:.0%} that a guess has to gain"
            return Choice(None, each, gain, why)
        return Choice(artifact, each, gain, f"predicted to be {1 + gain:.2f}× as fast as the default")
    return Choice(None, None, 0.0, "the emulator has passed none of the configurations")


def subject(default: KernelPlan, bucket: Bucket, sms: int) -> dict[str, Any]:
    """``Question.subject`` of what a target asks."""
    return {
        "op": default.op, "arch": default.arch, "dims": default.dims, "variant": default.variant, "bucket": bucket,
        "sms": sms,
    }  # fmt: skip


def entry(
    choice: Choice,
    default: Ranked,
    ranked: Sequence[Ranked],
    sizes: Sequence[Sizes],
    *,
    bucket: Bucket,
    trust: str,
    device: Device | None = None,
) -> Entry:
    """The entry of a choice that has an artifact, sealed: for every GPU of the arch with as many SMs as its spec has.

    ``proof`` holds the ranking, the shapes and in words what is known of it; nothing in it was measured.
    """
    assert choice.artifact is not None and choice.ranked is not None
    manifest = choice.artifact.manifest
    question = Question.about(manifest, bucket, device or any_device(load_arch(manifest.arch).sms), Policy())
    proof = {
        "unmeasured": trust,
        "predicted_us": round(choice.ranked.us, 4),
        "default": {"config": default.plan.config, "predicted_us": round(default.us, 4)},
        "shapes": [
            {"sizes": dict(each), "predicted_us": round(shape.us, 4), "bound": shape.bound}
            for each, shape in zip(sizes, choice.ranked.shapes, strict=True)
        ],
        "ranking": [
            {"rank": rank, "config": each.plan.config, "predicted_us": round(each.us, 4)}
            for rank, each in enumerate(ranked[:KEPT], start=1)
        ],
        "emulator": [check.model_dump() for check in choice.artifact.evidence().checks if check.rung == "emulator"][-1],
    }
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = Entry(
        question=question, key=manifest.key, config=manifest.config, source="predicted", when=when, proof=proof
    )
    return made.sealed()
