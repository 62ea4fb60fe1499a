"""What a study is about: the settings of a sweep, the study's name and place, and what it says of itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import digest
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.errors import CacheRefused
from dsv4.runtime.tuned import FAKE_DEVICE, Bucket, Device, Policy, read_entries
from dsv4.tuner.budget import Budget
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.space import Space
from dsv4.tuner.study import LOST_MAX
from dsv4.tuner.survey import survey
from dsv4.tuner.target import Target

SURVEYED_MAX = 1000
"""Configurations asked of the resource model for what a new study says of its space: a second at most."""


@dataclass(frozen=True)
class Settings:
    """How to sweep. ``sizes`` are the shapes to measure, ``limit_s`` what one kernel may take for check and timing.

    The winner serves ``bucket``; where there are several ``buckets``, each has a winner. ``loss``: the share of the
    best's time by which a winner may be slower, so that fewer configurations win.
    """

    device: Device
    sizes: tuple[Sizes, ...]
    budget: Budget
    sampler: str = "tpe"
    batch: int = 8
    seed: int = 0
    rounds: int = 15
    compare_rounds: int = 41
    limit_s: float = 60.0
    bucket: Bucket = field(default_factory=dict)
    buckets: tuple[Bucket, ...] = ()
    loss: float | None = None
    policy: Policy = field(default_factory=Policy)
    retry_quarantined: bool = False
    lost_max: int = LOST_MAX

    @property
    def served(self) -> tuple[Bucket, ...]:
        """The buckets that are to be served."""
        return self.buckets or (self.bucket,)

    @property
    def is_fake(self) -> bool:
        return self.device.name == FAKE_DEVICE


def require_writable(cache: KernelCache) -> None:
    """Raises UsageError, before anything is measured, where nothing could be kept."""
    if cache.refused:
        raise UsageError(f"kernel cache refused: {cache.refused}")
    try:
        with tempfile.NamedTemporaryFile(dir=cache.root, prefix=".writable-"):
            pass
    except OSError as error:
        raise UsageError(f"{cache.root}: {error.strerror}; valid: a cache that can be written (DSV4_CACHE)") from None


def require_entries(cache: KernelCache, op: str, arch: str) -> None:
    """Raises UsageError, before anything is measured, where the cache's entries of ``op`` are damaged or of another
    version: a winner could not be kept beside them, and they are not for this version to replace."""
    try:
        _, problems = read_entries(cache.tuned_path(op, arch))
    except CacheRefused as error:
        problems = [str(error)]
    if problems:
        raise UsageError(f"{problems[0]} (no winner could be kept beside it: move the file away, or use another cache)")


def journal_path(cache: KernelCache, target: Target, is_fake: bool) -> Path:
    """Where the studies of an operator on an arch are kept by default; made-up ones never lie among the others."""
    kind = "made-up." if is_fake else ""
    return cache.root / "studies" / f"{kind}{target.op}.{target.arch}.journal"


def study_name(target: Target, default: KernelPlan, settings: Settings, default_key: str) -> str:
    """One study for one question: the compiled default's key stands for template, spec and toolchain."""
    question = [
        default.dims, default.variant, target.pinned, settings.device.model_dump(), settings.policy.model_dump(),
        list(settings.sizes), default_key,
    ]  # fmt: skip
    if len(settings.served) > 1:  # what is slow over all was not given up
        question.append(list(settings.served))
    return f"{target.op}.{target.arch}.{digest(question)[:16]}"


def about(target: Target, default: KernelPlan, settings: Settings, space: Space) -> dict[str, Any]:
    """What a study says of itself, for reports."""
    found = survey(space, planned_max=SURVEYED_MAX)
    return {
        "op": target.op,
        "arch": target.arch,
        "dims": default.dims,
        "variant": default.variant,
        "pinned": target.pinned,
        "device": settings.device.model_dump(),
        "policy": settings.policy.model_dump(),
        "sizes": list(settings.sizes),
        "bucket": settings.served[0] if len(settings.served) == 1 else {},
        "buckets": list(settings.served),
        "rounds": settings.rounds,
        "sampler": settings.sampler,
        "seed": settings.seed,
        "default": default.config,
        "points": found.points,
        "allowed": found.allowed,
        "fitting": found.fitting,
        "sampled": found.sampled,
        "refused": {each.text: each.count for each in found.reasons},
    }
