"""What is tuned: one operator on one arch with its dimensions and flags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.generator.spec import load_arch
from dsv4.generator.spec.plan import Planner
from dsv4.generator.spec.resolve import resolve_config
from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.runtime.tuned import inside
from dsv4.tuner.space import Space
from dsv4.tuner.tried import changed

RANKED_TOGETHER_MAX = 2000
"""Configurations equally far from the default that are planned before the first of them is given, to be put in order;
further ones follow in the next such group."""


@dataclass(frozen=True)
class Target:
    """A kernel whose configuration is open. ``pinned`` holds tunables that the caller has fixed."""

    op: str
    arch: str
    model: str | None = None
    dims: dict[str, int] = field(default_factory=dict)
    variant: dict[str, Scalar] = field(default_factory=dict)
    pinned: dict[str, Scalar] = field(default_factory=dict)

    def planner(self) -> Planner:
        """Raises SpecError."""
        return Planner(self.op, self.arch, model=self.model, dims=self.dims, variant=self.variant)

    def default(self) -> KernelPlan:
        """The default configuration, pinned or not. Raises SpecError, Refused."""
        return self.planner().plan()

    def space(self) -> Space:
        """The space of configurations.

        Raises SpecError for an unknown name or value, and UsageError, naming the constraint that is to blame, where
        the constraints leave no configuration.
        """
        planner = self.planner()
        if missing := planner.missing_features():
            raise UsageError(f"{self.op} on {self.arch}: found no {missing[0]} there; valid: an arch that has it")
        self._check_pinned(planner)
        space = Space(planner, self.pinned)
        if not space.tally().allowed:
            raise UsageError(f"{self.op} on {self.arch}: no configuration is left: {emptied_by(space)}")
        return space

    def _check_pinned(self, planner: Planner) -> None:
        """Names and values, so that a typing error is no empty space; one by one: together they may be contradictory,
        which the space tells better. A tunable whose condition does not hold has its say there, too."""
        for name, value in self.pinned.items():
            tunable = planner.spec.on(planner.arch).get(name)
            if tunable is None or tunable.when is None or value not in tunable.on(planner.arch):
                resolve_config(planner.spec, planner.arch, planner.scope, {name: value})


def untuned(planner: Planner, sizes: Mapping[str, int]) -> KernelPlan:
    """What serves a call of these sizes where nothing was tuned: the default, or the spec's own kernel for them."""
    every = {**planner.dims, **sizes}
    return next((each for each in planner.bucketed() if inside(each.bucket, every)), planner.plan())


def emptied_by(space: Space) -> str:
    """Which constraint leaves nothing of ``space``, in one line: the one without which the most would be left."""
    saved: list[tuple[int, str]] = []
    for item in space.planner.constraints:
        left = Space(space.planner, space.pinned, without=item).tally().allowed
        if left:
            words = item.reason or f"other values of {', '.join(item.check.names)}"
            saved.append((left, f"{item.check} never holds (without it {left} would be left); valid: {words}"))
    if saved:
        return max(saved)[1]
    reasons = sorted(space.tally().reasons.items(), key=lambda each: -each[1])
    told = "; ".join(f"{count} × {space.examples[kind]}" for kind, count in reasons[:3])
    return f"several constraints refuse all {space.points}: {told}" if told else "nothing agrees with --set"


RANKING = (
    "the default first, then by how few tunables differ from it, "
    "then by how much shared memory the CTAs that fit on one SM use together (more is in flight)"
)


def ranked(space: Space, default: KernelPlan) -> Iterator[KernelPlan]:
    """The configurations that fit, by ``RANKING``, planned as they are asked for.

    It is a guess to start from; the search goes by what it measures.
    """
    by_distance = groupby(space.near(default.config), key=lambda config: len(changed(config, default.config)))
    for _, same in by_distance:
        while group := list(islice(same, RANKED_TOGETHER_MAX)):
            yield from rank((each for each in map(space.plan, group) if not isinstance(each, Refused)), default)


def rank(plans: Iterable[KernelPlan], default: KernelPlan) -> list[KernelPlan]:
    """``plans`` by ``RANKING``."""
    return sorted(
        plans,
        key=lambda each: (len(changes(each, default)), -resident_smem_bytes(each), canonical_json(each.config)),
    )


def changes(each: KernelPlan, default: KernelPlan) -> dict[str, Scalar]:
    """The tunables in which ``each`` differs from ``default``."""
    return changed(each.config, default.config)


def resident_ctas(each: KernelPlan) -> int:
    """CTAs that one SM can hold at once, as far as that is known before compilation.

    Shared memory, threads and TMEM columns always count. Registers count where roles ask for their share (setmaxnreg),
    which fixes what a launch takes; elsewhere the compiler decides.
    """
    limits, budget = load_arch(each.arch).limits, each.budget
    threads = max(each.predicted.threads, 1)
    bounds = [
        limits.ctas_per_sm,
        limits.threads_per_sm // threads,
        limits.smem_bytes_per_sm // max(each.predicted.smem_bytes + limits.smem_reserved_bytes_per_cta, 1),
    ]
    if each.predicted.tmem_columns:
        bounds.append(limits.tmem_columns // each.predicted.tmem_columns)
    if any(role.registers for role in budget.roles.values()):
        bounds.append(limits.registers_per_sm // (budget.launch_registers * threads))
    return max(0, min(bounds))


def resident_smem_bytes(each: KernelPlan) -> int:
    return resident_ctas(each) * each.predicted.smem_bytes
