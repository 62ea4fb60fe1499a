"""Values for dimensions, flags and tunables: defaults from the spec, overrides from the caller, errors in one line."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4.generator.spec.checks import has
from dsv4.generator.spec.chip_schema import ModelSpec
from dsv4.generator.spec.errors import SpecError, Words, one_of
from dsv4.generator.spec.expression import MODEL_PREFIX, Expression, Unevaluable, Value
from dsv4.generator.spec.op_schema import OpSpec
from dsv4.generator.spec.tunable_schema import Dim
from dsv4.runtime.artifact import Scalar


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def resolve_dims(spec: OpSpec, model: ModelSpec | None, overrides: Mapping[str, int] | None) -> dict[str, int]:
    """The static dimensions: an override, else the value from the model, else the spec's default. Raises SpecError."""
    overrides = dict(overrides or {})
    scope: dict[str, Value] = {MODEL_PREFIX + key: size for key, size in model.names().items()} if model else {}
    static = {name: dim for name, dim in spec.dims.items() if dim.is_static}
    for name in overrides:
        if name not in static:
            found = Words(f"{name}, which is known at the call only") if name in spec.dims else name
            raise SpecError(f"dims.{name}", found, one_of(static, name), origin=spec.op)
    sizes: dict[str, int] = {}
    for name, dim in static.items():
        size = overrides[name] if name in overrides else _standard(spec, name, dim, {**scope, **sizes})
        problem = dim.problem(size) if _whole(size) else "a positive whole number"
        if problem is None and name in overrides and dim.value is not None and not dim.value.names:
            fixed = dim.value.integer({})
            problem = None if size == fixed else f"{fixed} (fixed by the spec)"
        if problem:
            raise SpecError(f"dims.{name}", size, problem, origin=spec.op)
        sizes[name] = size
    return sizes


def _standard(spec: OpSpec, name: str, dim: Dim, scope: Mapping[str, Value]) -> int:
    expr = dim.value or dim.default
    if expr is None:
        assert dim.static is not None
        return dim.static[0]
    missing = [item for item in expr.names if item not in scope]
    if missing:
        valid = f"a model (it is {expr.text}), or a value for {name}"
        raise SpecError(f"dims.{name}", Words("no model"), valid, origin=spec.op)
    try:
        return expr.integer(scope)
    except Unevaluable as problem:
        raise SpecError(f"dims.{name}", Words(str(problem)), "a whole number", origin=spec.op) from None


def resolve_variant(spec: OpSpec, overrides: Mapping[str, Scalar] | None) -> dict[str, Scalar]:
    """Every flag: an override or its default. Raises SpecError."""
    overrides = dict(overrides or {})
    for name, value in overrides.items():
        if name not in spec.variants:
            raise SpecError(f"variants.{name}", name, one_of(spec.variants, name), origin=spec.op)
        if not has(spec.variants[name].values, value):
            raise SpecError(f"variants.{name}", value, _listed(spec.variants[name].values), origin=spec.op)
    return {name: overrides.get(name, flag.standard) for name, flag in spec.variants.items()}


def default_config(spec: OpSpec, arch: str, scope: Mapping[str, Value]) -> dict[str, Scalar]:
    """The default configuration for the dimensions and flags in ``scope``: later rules override earlier ones."""
    config: dict[str, Scalar] = {}
    for rule in spec.defaults[arch]:
        if rule.when is None or rule.when(scope):
            config |= {name: setting(spec, arch, name, value, scope) for name, value in rule.set.items()}
    ordered = {name: config[name] for name in spec.on(arch)}
    return settle(spec, arch, ordered, scope)


def setting(spec: OpSpec, arch: str, name: str, value: Scalar | Expression, scope: Mapping[str, Value]) -> Scalar:
    """``value``, worked out if it is an expression; what comes out has to be a value of the tunable."""
    if not isinstance(value, Expression):
        return value
    origin, valid = f"{spec.op} on {arch}", _listed(spec.tunables[name].on(arch))
    try:
        number = value.integer(scope)
    except Unevaluable as problem:
        raise SpecError(f"defaults.{arch}.{name}", Words(str(problem)), valid, origin=origin) from None
    if not has(spec.tunables[name].on(arch), number):
        raise SpecError(f"defaults.{arch}.{name}", number, valid, origin=origin)
    return number


def resolve_config(
    spec: OpSpec, arch: str, scope: Mapping[str, Value], overrides: Mapping[str, Scalar] | None
) -> tuple[dict[str, Scalar], bool]:
    """Every tunable, and whether the result is the default configuration. Raises SpecError."""
    origin = f"{spec.op} on {arch}"
    tunables = spec.on(arch)
    overrides = dict(overrides or {})
    for name, value in overrides.items():
        if name not in tunables:
            raise SpecError(f"tunables.{name}", name, one_of(tunables, name), origin=origin)
        if not has(tunables[name].on(arch), value):
            raise SpecError(f"tunables.{name}", value, _listed(tunables[name].on(arch)), origin=origin)
    standard = default_config(spec, arch, scope)
    config = settle(spec, arch, {**standard, **overrides}, scope)
    for name, value in overrides.items():
        if config[name] != value:
            valid = f"{_listed((config[name],))} (it is searched only when {tunables[name].when})"
            raise SpecError(f"tunables.{name}", value, valid, origin=origin)
    return config, config == standard


def settle(spec: OpSpec, arch: str, config: Mapping[str, Scalar], scope: Mapping[str, Value]) -> dict[str, Scalar]:
    """``config`` with every tunable whose ``when`` is false at its fixed value."""
    settled: dict[str, Scalar] = {}
    for name, value in config.items():
        tunable = spec.tunables[name]
        applies = holds(tunable.when, {**scope, **settled})
        settled[name] = value if applies else tunable.fixed(arch)
    return settled


def holds(when: Expression | None, scope: Mapping[str, Value]) -> bool:
    """Whether a condition of a spec holds. Raises SpecError if it has no value."""
    try:
        return when is None or bool(when(scope))
    except Unevaluable as problem:
        raise SpecError("when", Words(str(problem)), "a condition that has a value", origin="spec") from None


def _listed(values: tuple[Scalar, ...]) -> str:
    return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
