"""What is tuned: one operator on one arch with its dimensions and flags, and every configuration that it may have."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError, load_arch, plan, space
from dsv4.runtime.artifact import Scalar, canonical_json

_NUMBER = re.compile(r"\d[\d,._]*")


@dataclass(frozen=True)
class Refusals:
    """Configurations that cannot be, by reason. Reasons that differ in their numbers only count together."""

    count: int
    by_reason: dict[str, int]
    """The first reason of each kind that was met, word for word, to how many configurations had one of its kind."""


@dataclass(frozen=True)
class Target:
    """A kernel whose configuration is open. ``pinned`` holds tunables that the caller has fixed."""

    op: str
    arch: str
    model: str | None = None
    dims: dict[str, int] = field(default_factory=dict)
    variant: dict[str, Scalar] = field(default_factory=dict)
    pinned: dict[str, Scalar] = field(default_factory=dict)

    def default(self) -> KernelPlan:
        """The default configuration, pinned or not. Raises SpecError, Refused."""
        return plan(self.op, self.arch, model=self.model, dims=self.dims, variant=self.variant)

    def configurations(self) -> tuple[list[KernelPlan], Refusals]:
        """Every configuration that agrees with ``pinned`` and fits, the best guesses first, and what was refused.

        Raises SpecError for an unknown name, ``Refused`` where the default itself does not fit.
        """
        default = self.default()
        if self.pinned:  # the names and values are checked here, so that a typing error is no empty space
            with contextlib.suppress(Refused):
                plan(self.op, self.arch, model=self.model, dims=self.dims, variant=self.variant, config=self.pinned)
        plans: list[KernelPlan] = []
        examples: dict[str, str] = {}
        counts: Counter[str] = Counter()
        refused = 0
        for config, point in space(self.op, self.arch, model=self.model, dims=self.dims, variant=self.variant):
            if any(config.get(name, value) != value for name, value in self.pinned.items()):
                continue
            if not isinstance(point, Refused):
                plans.append(point)
                continue
            refused += 1
            for reason in point.reasons:
                kind = _NUMBER.sub("#", reason)
                examples.setdefault(kind, reason)
                counts[kind] += 1
        by_reason = {examples[kind]: count for kind, count in counts.most_common()}
        return rank(plans, default), Refusals(refused, by_reason)


RANKING = (
    "the default first, then by how few tunables differ from it, "
    "then by how much shared memory the CTAs that fit on one SM use together (more is in flight)"
)


def rank(plans: list[KernelPlan], default: KernelPlan) -> list[KernelPlan]:
    """``plans`` by ``RANKING``. It is a guess to start from; the search goes by what it measures."""

    def order(each: KernelPlan) -> tuple[int, int, str]:
        return len(changes(each, default)), -resident_smem_bytes(each), canonical_json(each.config)

    return sorted(plans, key=order)


def changes(each: KernelPlan, default: KernelPlan) -> dict[str, Scalar]:
    """The tunables in which ``each`` differs from ``default``."""
    return {name: value for name, value in each.config.items() if default.config.get(name) != value}


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


def choices(plans: list[KernelPlan]) -> dict[str, list[Scalar]]:
    """The values that each tunable takes among ``plans``, in the order in which they appear."""
    values: dict[str, list[Scalar]] = {}
    for each in plans:
        for name, value in each.config.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return values


def spelled(config: Mapping[str, Scalar]) -> str:
    """``tile_m=128 causal=true`` for a person."""
    return " ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in config.items())


__all__ = ["RANKING", "Refusals", "SpecError", "Target", "changes", "choices", "rank", "resident_ctas", "spelled"]
