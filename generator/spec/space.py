"""The search space of an operator: every configuration, planned or refused, without walking what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.generator.spec.expression import Unevaluable, Value
from dsv4.generator.spec.op_schema import Constraint, OpSpec
from dsv4.generator.spec.plan import Planner, broken, chosen
from dsv4.generator.spec.resolve import holds
from dsv4.runtime.artifact import Scalar

Point = tuple[dict[str, Scalar], KernelPlan | Refused]


def space(
    op: str | OpSpec,
    arch: str,
    *,
    model: str | None = None,
    dims: Mapping[str, int] | None = None,
    variant: Mapping[str, Scalar] | None = None,
) -> Iterator[Point]:
    """Every configuration of the tunables with its plan, or with the reasons for its refusal.

    A constraint is checked as soon as the tunables that it names are set; what it refuses is reported once, with the
    tunables set so far (a partial configuration stands for all that share it). Tunables whose ``when`` is false are not
    varied. Raises SpecError as ``plan`` does.
    """
    planner = Planner(op, arch, model=model, dims=dims, variant=variant)
    missing = planner.missing_features()
    if missing:
        yield {}, Refused(f"requires.{arch}: {item} is no feature of {arch}" for item in missing)
        return
    yield from _walk(planner, _Checks(planner), {}, list(planner.spec.on(arch)))


def _walk(planner: Planner, checks: _Checks, config: dict[str, Scalar], left: list[str]) -> Iterator[Point]:
    reasons = checks.broken(config)
    if reasons:
        yield dict(config), Refused(reasons)
        return
    if not left:
        try:
            yield dict(config), planner.plan(config)
        except Refused as refused:
            yield dict(config), refused
        return
    name, *rest = left
    tunable = planner.spec.tunables[name]
    applies = holds(tunable.when, {**planner.scope, **config})
    for value in tunable.on(planner.arch) if applies else (tunable.fixed(planner.arch),):
        yield from _walk(planner, checks, {**config, name: value}, rest)


class _Checks:
    """The constraints, by the tunable that decides them: the last one in order that they depend on."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        order = list(planner.spec.on(planner.arch))
        self.by_depth: dict[int, list[Constraint]] = {}
        for item in planner.constraints:
            needed = chosen(item.check, planner.spec.let)
            depth = max((order.index(name) + 1 for name in needed if name in order), default=0)
            self.by_depth.setdefault(depth, []).append(item)

    def broken(self, config: Mapping[str, Scalar]) -> list[str]:
        """Why the constraints that the newest tunable decides do not hold."""
        decided = self.by_depth.get(len(config), [])
        if not decided:
            return []
        scope: dict[str, Value] = {**self.planner.scope, **config}
        for name, expr in self.planner.spec.let.items():
            if all(item in scope for item in expr.names):
                try:
                    scope[name] = expr(scope)
                except Unevaluable as problem:
                    return [f"let.{name}: {problem}"]
        return [reason for item in decided if (reason := broken(item, scope, self.planner.spec.let))]
