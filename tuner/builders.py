"""Where a configuration's compiled kernel comes from: the compiler, or a cache that was filled on another machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import KernelCache


@dataclass(frozen=True)
class Built:
    """An artifact's folder, or why there is none, in one line."""

    plan: KernelPlan
    artifact: Path | None
    error: str | None


class Builder(Protocol):
    """Has kernels ready for measuring."""

    def available(self, plans: list[KernelPlan]) -> list[KernelPlan]:
        """Those of ``plans`` that this builder can provide at all."""

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        """One result per plan, in their order."""


class Compiler:
    """Compiles in the pool; what the cache holds is not compiled again."""

    def __init__(self, cache: KernelCache, jobs: int | None) -> None:
        self.cache, self.jobs = cache, jobs

    def available(self, plans: list[KernelPlan]) -> list[KernelPlan]:
        return plans

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        from dsv4.generator.build import build  # here: a machine that only measures has no compiler

        done = build(
            plans,
            cache_root=self.cache.root,
            jobs=self.jobs,
            progress=lambda result: progress(Built(result.plan, result.artifact, result.error)),
        )
        return [Built(result.plan, None if result.error else result.artifact, result.error) for result in done]


class Prebuilt:
    """Takes what is in the cache and compiles nothing; the spec that a kernel was built from must be today's."""

    def __init__(self, cache: KernelCache) -> None:
        self.cache = cache

    def available(self, plans: list[KernelPlan]) -> list[KernelPlan]:
        return [plan for plan in plans if self._find(plan)]

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        found = []
        for plan in plans:
            artifact = self._find(plan)
            found.append(Built(plan, artifact, None if artifact else f"not in the cache {self.cache.root}"))
            progress(found[-1])
        return found

    def _find(self, plan: KernelPlan) -> Path | None:
        wanted = canonical_json(plan.identity)
        for artifact in self.cache.artifacts(plan.op, plan.arch):
            manifest = artifact.manifest
            identity = {name: getattr(manifest, name) for name in plan.identity}
            if manifest.spec_sha256 == plan.spec_sha256 and canonical_json(identity) == wanted:
                return artifact.folder
        return None
