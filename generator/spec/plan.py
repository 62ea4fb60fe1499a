"""From a spec and a caller's choices to a kernel that is decided in every particular, or to the reasons why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Budget, Refused, place
from dsv4.generator.spec.chip_schema import ArchSpec
from dsv4.generator.spec.contract import build_contract
from dsv4.generator.spec.errors import SpecError, Words, one_of
from dsv4.generator.spec.expression import Expression, Unevaluable, Value
from dsv4.generator.spec.load import load_arch, load_model, load_op
from dsv4.generator.spec.op_schema import Constraint, OpSpec
from dsv4.generator.spec.request import evaluate_let, request_for
from dsv4.generator.spec.resolve import holds, resolve_config, resolve_dims, resolve_variant, setting
from dsv4.runtime.artifact import Resources, Scalar, digest


def plan(
    op: str | OpSpec,
    arch: str,
    *,
    model: str | None = None,
    dims: Mapping[str, int] | None = None,
    variant: Mapping[str, Scalar] | None = None,
    config: Mapping[str, Scalar] | None = None,
) -> KernelPlan:
    """One kernel of ``op`` on ``arch``. What is not given takes the spec's default.

    Raises SpecError for an unknown name or a value that the spec does not list, and Refused (with every reason) for a
    configuration that is listed but does not fit the chip or the operator's constraints.
    """
    return Planner(op, arch, model=model, dims=dims, variant=variant).plan(config)


class Planner:
    """Plans for one operator, arch, model, set of dimensions and flags; only the configuration is still open."""

    def __init__(
        self,
        op: str | OpSpec,
        arch: str,
        *,
        model: str | None = None,
        dims: Mapping[str, int] | None = None,
        variant: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.spec = load_op(op) if isinstance(op, str) else op
        self.chip: ArchSpec = load_arch(arch)
        if arch not in self.spec.archs:
            raise SpecError("arch", arch, one_of(self.spec.archs, arch), origin=self.spec.op)
        self.arch = arch
        self.model = model
        self.dims = resolve_dims(self.spec, load_model(model) if model else None, dims)
        self.variant = resolve_variant(self.spec, variant)
        self.scope: dict[str, Value] = {**self.dims, **self.variant, "sms": self.chip.sms}
        self.constraints = [item for item in self.spec.constraints if item.arch in (None, arch)]
        self.spec_sha256 = digest([self.spec.sha256, self.chip.sha256])

    def plan(self, config: Mapping[str, Scalar] | None = None) -> KernelPlan:
        """The kernel with ``config``. Raises SpecError, Refused."""
        try:
            return self._plan(config)
        except Unevaluable as problem:
            raise Refused([f"{self.spec.op}: {problem}; valid: other sizes"]) from None

    def _plan(self, config: Mapping[str, Scalar] | None) -> KernelPlan:
        spec, arch = self.spec, self.arch
        settled, is_default = resolve_config(spec, arch, self.scope, config)
        scope = evaluate_let(spec.let, spec.op, {**self.scope, **settled})
        reasons = [f"requires.{arch}: {item} is no feature of {arch}" for item in self.missing_features()]
        reasons += [reason for item in self.constraints if (reason := broken(item, scope, spec.let))]
        contract = build_contract(spec, self.dims, scope)
        try:
            budget = self._budget(scope, contract)
        except Refused as refused:
            raise Refused([*reasons, *refused.reasons]) from None
        if reasons:
            raise Refused(reasons)
        target = self.chip.build_targets[0]
        return KernelPlan(
            op=spec.op,
            arch=arch,
            model=self.model,
            dims=dict(self.dims),
            variant=dict(self.variant),
            config=settled,
            is_default=is_default,
            template=spec.template[arch],
            budget=budget,
            predicted=_predicted(budget),
            contract=contract,
            numeric_class=numeric_class(spec, settled),
            spec_sha256=self.spec_sha256,
            compute_capabilities=target.compute_capabilities,
            build_target=target.target,
            forbid_spills=spec.forbid_spills,
            compile_seconds_limit=spec.compile_seconds_limit,
        )

    def bucketed(self) -> list[KernelPlan]:
        """The default kernels of their own for some sizes of the call. Raises SpecError, Refused."""
        found = []
        for rule in self.spec.buckets:
            if (rule.archs and self.arch not in rule.archs) or not holds(rule.when, self.scope):
                continue
            values = {name: setting(self.spec, self.arch, name, value, self.scope) for name, value in rule.set.items()}
            found.append(replace(self.plan(values), is_default=True, bucket=dict(rule.sizes)))
        return found

    def missing_features(self) -> list[str]:
        """What the operator requires of the chip and the chip does not have."""
        return [item for item in self.spec.requires.get(self.arch, ()) if item not in self.chip.features]

    def _budget(self, scope: Mapping[str, Value], contract: object) -> Budget:
        """The first launch's budget, with those of the others in ``further``."""
        spec, arch, limits = self.spec, self.arch, self.chip.limits
        first = spec.kernels[0].name if spec.kernels else spec.op
        launches = [(first, spec.storage[arch], f"storage.{arch}")]
        for index, kernel in enumerate(spec.kernels):
            if index and arch in kernel.storage and holds(kernel.when, scope):
                launches.append((kernel.name, kernel.storage[arch], f"kernels[{index}].storage.{arch}"))
        budgets: list[Budget] = []
        reasons: list[str] = []
        for name, storage, where in launches:
            try:
                budgets.append(place(request_for(name, storage, where, scope, contract), limits, arch))  # type: ignore[arg-type]
            except Refused as refused:
                reasons += refused.reasons
        if reasons:
            raise Refused(reasons)
        return replace(budgets[0], further={budget.name: budget for budget in budgets[1:]})


def broken(constraint: Constraint, scope: Mapping[str, Value], let: Mapping[str, Expression]) -> str | None:
    """Why ``constraint`` does not hold in ``scope``, or None if it does. ``let`` leads from its names to choices."""
    try:
        if constraint.check(scope):
            return None
    except Unevaluable as problem:
        return f"constraints: {problem}"
    choices = chosen(constraint.check, let)
    values = ", ".join(f"{name} = {shown(scope[name])}" for name in dict.fromkeys([*choices, *constraint.check.names]))
    told = constraint.reason or f"other values of {', '.join(choices)}"
    return f"constraints: {constraint.check} does not hold with {values}; valid: {told}"


def chosen(expr: Expression, let: Mapping[str, Expression]) -> list[str]:
    """The dimensions, flags and tunables that ``expr`` depends on, through ``let`` too."""
    found: dict[str, None] = {}
    for name in expr.names:
        found |= dict.fromkeys(chosen(let[name], let) if name in let else [name])
    return list(found)


def shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def numeric_class(spec: OpSpec, config: Mapping[str, Scalar]) -> str:
    """The accumulation class: kernels of equal class give equal bits (the spec says which tunables matter)."""
    order = [f"{name}={shown(config[name])}" for name in spec.numerics.order if name in config]
    return "/".join([spec.numerics.numeric_class, *order])


def work(spec: OpSpec, plan: KernelPlan, sizes: Mapping[str, int]) -> dict[str, float]:
    """The operator's work counts (bytes, mma in FLOP, exp2, …) for a plan at the dynamic ``sizes``.

    Raises SpecError for a missing size.
    """
    scope: dict[str, Value] = {**plan.dims, **plan.variant, **plan.config, **sizes}
    for name, dim in spec.dims.items():
        if dim.derived is not None:
            scope[name] = _given(dim.derived, scope, f"dims.{name}", spec)
    for name, expr in spec.let.items():
        scope[name] = _given(expr, scope, f"let.{name}", spec)
    for name, expr in spec.work.items():
        scope[name] = _given(expr, scope, f"work.{name}", spec)
    return {name: float(scope[name]) for name in spec.work}


def _given(expr: Expression, scope: Mapping[str, Value], field: str, spec: OpSpec) -> Value:
    missing = [name for name in expr.names if name not in scope]
    if missing:
        raise SpecError(field, Words("nothing"), f"a size for {', '.join(missing)}", origin=spec.op)
    try:
        return expr(scope)
    except Unevaluable as problem:
        raise SpecError(field, Words(str(problem)), "sizes for which it has a value", origin=spec.op) from None


def _predicted(budget: Budget) -> Resources:
    """What the manifest predicts: the most of each resource that one of the launches takes."""
    every = [budget, *budget.further.values()]
    return Resources(
        smem_bytes=max(item.smem_bytes for item in every),
        tmem_columns=max(item.tmem_columns for item in every),
        threads=max(item.threads for item in every),
    )


def default_plans(op: str | OpSpec, arch: str, model: str | None = None) -> list[KernelPlan]:
    """Every default kernel of ``op`` on ``arch``: the products of the spec's build list, in order, each once, with its
    like for some sizes alone behind it.

    Empty for an operator of ``status: planned`` and for an arch without a template. Raises Refused if a default does
    not fit (a fault of the spec).
    """
    spec = load_op(op) if isinstance(op, str) else op
    if spec.status == "planned" or arch not in spec.archs:
        return []
    plans: dict[str, KernelPlan] = {}
    for rule in spec.build:
        if rule.archs and arch not in rule.archs:
            continue
        axes = {
            name: rule.dims.get(name) or dim.static
            for name, dim in spec.dims.items()
            if name in rule.dims or dim.static
        }
        for sizes in product(*(axis or () for axis in axes.values())):
            for flags in product(*rule.variants.values()):
                dims = dict(zip(axes, sizes, strict=True))
                variant = dict(zip(rule.variants, flags, strict=True))
                planner = Planner(spec, arch, model=model, dims=dims, variant=variant)
                if holds(rule.when, planner.scope):
                    for kernel in (planner.plan(), *planner.bucketed()):
                        plans.setdefault(digest(kernel.identity), kernel)
    return list(plans.values())
