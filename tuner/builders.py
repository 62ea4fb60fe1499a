"""Where a configuration's compiled kernel comes from: the compiler, or a cache that was filled on another machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.tuner.space import Config, Space


@dataclass(frozen=True)
class Built:
    """An artifact's folder, or why there is none, in one line."""

    plan: KernelPlan
    artifact: Path | None
    error: str | None


class Builder(Protocol):
    """Has kernels ready for measuring."""

    def only(self, space: Space) -> list[Config] | None:
        """The configurations of ``space`` that this builder can provide; None if it can provide any."""

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        """One result per plan, in their order."""


class Compiler:
    """Compiles in the pool; what the cache holds is not compiled again."""

    def __init__(self, cache: KernelCache, jobs: int | None) -> None:
        self.cache, self.jobs = cache, jobs

    def only(self, space: Space) -> list[Config] | None:
        return None

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

    def only(self, space: Space) -> list[Config] | None:
        planner = space.planner
        found = []
        for artifact in self.cache.artifacts(planner.spec.op, planner.arch):
            config = artifact.manifest.config
            if set(config) == set(space.names) and space.nearest(config) == config:
                plan = space.plan(config)
                if not isinstance(plan, Refused) and _is_of(artifact, plan):
                    found.append(plan.config)
        return found

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        found = []
        for plan in plans:
            artifact = self._find(plan)
            found.append(Built(plan, artifact, None if artifact else f"not in the cache {self.cache.root}"))
            progress(found[-1])
        return found

    def _find(self, plan: KernelPlan) -> Path | None:
        return next((each.folder for each in self.cache.artifacts(plan.op, plan.arch) if _is_of(each, plan)), None)


def _is_of(artifact: Artifact, plan: KernelPlan) -> bool:
    manifest = artifact.manifest
    identity = {name: getattr(manifest, name) for name in plan.identity}
    return manifest.spec_sha256 == plan.spec_sha256 and canonical_json(identity) == canonical_json(plan.identity)
