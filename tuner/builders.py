"""Where a configuration's compiled kernel comes from: the compiler, or a cache that was filled on another machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json, digest
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


class Ahead:
    """Lets ``builder`` work in the background, so that what is measured next is compiled while something else is."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._announced: list[KernelPlan] = []
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._done: dict[str, Built] = {}
        self._error: BaseException | None = None

    def only(self, space: Space) -> list[Config] | None:
        return self.builder.only(space)

    def announce(self, plans: Sequence[KernelPlan]) -> None:
        """What the call of ``build`` after the next will ask for: begun in the background when the next is done."""
        self._announced = list(plans)

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        """As the builder's own; what was announced in time is there already or waited for.

        What went wrong in the background (a full disk, say) is raised here.
        """
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        ready, self._done = self._done, {}
        keys = [digest(plan.identity) for plan in plans]
        for key in keys:
            if key in ready:
                progress(ready[key])
        missing = [plan for key, plan in zip(keys, plans, strict=True) if key not in ready]
        built = iter(self.builder.build(missing, progress) if missing else ())
        found = [ready[key] if key in ready else next(built) for key in keys]
        if self._announced:
            self._thread = threading.Thread(target=self._work, args=(self._announced,), name="compile", daemon=True)
            self._announced = []
            self._thread.start()
        return found

    def stop(self) -> None:
        """Give up the background's work as soon as the next of it is done, and forget it."""
        self._is_stopped = True
        self._join()
        self._announced, self._is_stopped, self._done, self._error = [], False, {}, None

    def _work(self, plans: Sequence[KernelPlan]) -> None:
        try:
            self._done = {digest(one.plan.identity): one for one in self.builder.build(plans, self._go_on)}
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error

    def _go_on(self, one: Built) -> None:
        if self._is_stopped:
            raise _Stopped

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class _Stopped(Exception):
    """Ends the background's work."""


class Prebuilt:
    """Takes what is in the cache and compiles nothing. The spec that a kernel was built from must be today's; of
    several kernels of a configuration (templates change, too) it is the one that was built last."""

    def __init__(self, cache: KernelCache) -> None:
        self.cache = cache

    def only(self, space: Space) -> list[Config] | None:
        planner = space.planner
        found = []
        for artifact in self.cache.artifacts(planner.spec.op, planner.arch):
            config = artifact.manifest.config
            if set(config) == set(space.names) and space.nearest(config) == config:
                plan = space.plan(config)
                if not isinstance(plan, Refused) and plan.config not in found and _is_of(artifact, plan):
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
    same = manifest.spec_sha256 == plan.spec_sha256 and manifest.bucket == plan.bucket
    return same and canonical_json(identity) == canonical_json(plan.identity)
