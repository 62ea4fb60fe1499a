"""What a schema cannot say about an operator spec: that every name that is used exists, where it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from dsv4.generator.spec.errors import SpecError, Words, one_of
from dsv4.generator.spec.expression import MODEL_PREFIX, Expression
from dsv4.generator.spec.op_schema import OpSpec
from dsv4.generator.spec.tensor_schema import ANY
from dsv4.generator.spec.yaml_source import Path, Source, dotted

ARCH_NAMES = ("sms",)  # facts of the chip that expressions may use
_WITH_DYNAMIC = ("tensors", "operands", "outputs", "workspace", "ragged", "work")


def check_op(spec: OpSpec, source: Source, *, known_archs: list[str], model_names: Iterable[str]) -> None:
    """Raises SpecError for the first name in ``spec`` that means nothing where it stands."""
    _Checker(spec, source, known_archs, tuple(model_names)).run()


class _Checker:
    def __init__(self, spec: OpSpec, source: Source, known_archs: list[str], model_names: tuple[str, ...]) -> None:
        self.spec, self.source = spec, source
        self.known_archs, self.model_names = known_archs, model_names

    def run(self) -> None:
        self._archs()
        self._unique()
        self._arguments()
        self._references()
        self._defaults()
        self._buckets()
        self._build()
        for path, expr in expressions(self.spec):
            self._names(path, expr, self._scope(path))

    def refuse(self, path: Path, found: object, valid: str) -> None:
        while path and path not in self.source.lines:
            path = path[:-1]
        raise SpecError(dotted(path) or "file", found, valid, file=self.source.file, line=self.source.line(path))

    def member(self, path: Path, name: str, names: Iterable[str]) -> None:
        names = list(names)
        if name not in names:
            self.refuse(path, name, one_of(names, name))

    def _archs(self) -> None:
        spec = self.spec
        for field in ("template", "storage", "defaults", "requires"):
            for arch in getattr(spec, field):
                self.member((field, arch), arch, self.known_archs if field == "template" else spec.archs)
        for field in ("storage", "defaults"):
            for arch in spec.archs:
                if arch not in getattr(spec, field):
                    self.refuse((field,), Words(f"nothing for {arch}"), f"a value for each of {', '.join(spec.archs)}")
        for name, tunable in spec.tunables.items():
            for arch in tunable.per_arch or {}:
                self.member(("tunables", name, arch), arch, spec.archs)

    def _unique(self) -> None:
        """A name means one thing in a spec."""
        spec = self.spec
        seen: dict[str, str] = dict.fromkeys((*ARCH_NAMES, ANY), "the chip")
        for field in ("dims", "variants", "tunables", "let", "tensors", "operands", "outputs", "workspace", "scalars"):
            for name in getattr(spec, field):
                if name in seen:
                    self.refuse((field, name), name, f"a name that is not one of {seen[name]}'s")
                seen[name] = field
        for place, storage in self._storages():
            for name in storage.let:
                if name in seen:
                    self.refuse((*place, "let", name), name, f"a name that is not one of {seen[name]}'s")
            for field in ("smem", "roles"):
                names = [item.name for item in getattr(storage, field) if item.when is None]
                for index, name in enumerate(names):
                    if name in names[:index]:
                        self.refuse((*place, field), name, "names that no other entry has (or a `when` on each)")

    def _storages(self) -> Iterator[tuple[Path, Any]]:
        for arch, storage in self.spec.storage.items():
            yield ("storage", arch), storage
        for index, kernel in enumerate(self.spec.kernels):
            for arch, storage in kernel.storage.items():
                yield ("kernels", index, "storage", arch), storage

    def _arguments(self) -> None:
        spec = self.spec
        if spec.arguments is None:
            return
        names = [*spec.tensors, *spec.operands, *spec.outputs, *spec.workspace, *spec.scalars]
        for index, name in enumerate(spec.arguments):
            self.member(("arguments", index), name, names)
        for name in names:
            if spec.arguments.count(name) != 1:
                self.refuse(("arguments",), Words(f"{spec.arguments.count(name)} times {name}"), "every argument once")

    def _references(self) -> None:
        spec = self.spec
        for field in ("tensors", "operands", "outputs", "workspace"):
            for name, item in getattr(spec, field).items():
                if item.optional is not None:
                    self.member((field, name, "optional"), item.optional, spec.variants)
                    if not all(isinstance(value, bool) for value in spec.variants[item.optional].values):
                        self.refuse((field, name, "optional"), item.optional, "a flag whose values are true and false")
                layout = getattr(item, "layout", None)
                if layout is not None:
                    self.member((field, name, "layout"), layout, spec.layouts)
                    for key in ("pages", "page"):
                        self.member((field, name, key), getattr(item, key), spec.dims)
        tensors = [*spec.tensors, *spec.operands, *spec.outputs]
        for index, name in enumerate(spec.mutates):
            self.member(("mutates", index), name, tensors)
        for name, ragged in spec.ragged.items():
            self.member(("ragged", name, "offsets"), ragged.offsets, spec.tensors)
            self.member(("ragged", name, "over"), ragged.over, spec.dims)
        for index, name in enumerate(spec.numerics.order):
            self.member(("numerics", "order", index), name, spec.tunables)
        boxed = [*tensors, *(f"{name}_scale" for name in spec.operands), *spec.workspace]
        for place, storage in self._storages():
            for index, box in enumerate(storage.tma):
                self.member((*place, "tma", index, "tensor"), box.tensor, boxed)

    def _defaults(self) -> None:
        for arch, rules in self.spec.defaults.items():
            tunables = self.spec.on(arch)
            always: set[str] = set()
            for index, rule in enumerate(rules):
                for name, value in rule.set.items():
                    path = self._rule_path(arch, index, name)
                    self.member(path, name, tunables)
                    if not isinstance(value, Expression) and not has(tunables[name].on(arch), value):
                        self.refuse(path, value, ", ".join(map(str, tunables[name].on(arch))))
                always |= set(rule.set) if rule.when is None else set()
            for name in tunables:
                if name not in always:
                    self.refuse(("defaults", arch), Words(f"no value for {name}"), f"{name}: one of its values")
        for name, tunable in self.spec.tunables.items():
            for arch in self.spec.archs:
                if tunable.otherwise is not None and tunable.on(arch) and not has(tunable.on(arch), tunable.otherwise):
                    valid = ", ".join(map(str, tunable.on(arch)))
                    self.refuse(("tunables", name, "otherwise"), tunable.otherwise, valid)

    def _buckets(self) -> None:
        spec = self.spec
        dynamic = [name for name, dim in spec.dims.items() if dim.dynamic is not None]
        for index, rule in enumerate(spec.buckets):
            for name in rule.sizes:
                self.member(("buckets", index, "sizes", name), name, dynamic)
            for position, arch in enumerate(rule.archs):
                self.member(("buckets", index, "archs", position), arch, spec.archs)
            for arch in rule.archs or spec.archs:
                for name, value in rule.set.items():
                    path = ("buckets", index, "set", name)
                    self.member(path, name, spec.on(arch))
                    if not isinstance(value, Expression) and not has(spec.tunables[name].on(arch), value):
                        self.refuse(path, value, ", ".join(map(str, spec.tunables[name].on(arch))))

    def _rule_path(self, arch: str, index: int, name: str) -> Path:
        """Where the value stands: a plain mapping is short for one rule."""
        for path in (("defaults", arch, index, "set", name), ("defaults", arch, "set", name), ("defaults", arch, name)):
            if path in self.source.lines:
                return path
        return ("defaults", arch)

    def _build(self) -> None:
        spec = self.spec
        for index, rule in enumerate(spec.build):
            for name, sizes in rule.dims.items():
                self.member(
                    ("build", index, "dims", name), name, (key for key, dim in spec.dims.items() if dim.is_static)
                )
                for size in sizes:
                    problem = spec.dims[name].problem(size)
                    if problem:
                        self.refuse(("build", index, "dims", name), size, problem)
            for name, values in rule.variants.items():
                self.member(("build", index, "variants", name), name, spec.variants)
                for value in values:
                    if not has(spec.variants[name].values, value):
                        valid = ", ".join(map(str, spec.variants[name].values))
                        self.refuse(("build", index, "variants", name), value, valid)
            for position, arch in enumerate(rule.archs):
                self.member(("build", index, "archs", position), arch, spec.archs)

    def _scope(self, path: Path) -> list[str]:
        """The names that an expression at ``path`` may use."""
        spec = self.spec
        static = [name for name, dim in spec.dims.items() if dim.is_static]
        match path:
            case ("dims", str(name), "derived", *_):
                return [*spec.dims, *spec.variants, *spec.tunables]
            case ("dims", str(name), *_):
                earlier = static[: static.index(name)] if name in static else []
                return [*(MODEL_PREFIX + size for size in self.model_names), *earlier]
            case ("build" | "buckets", *_):
                return [*static, *spec.variants]
            case (str(field), *rest) if field in _WITH_DYNAMIC:
                names = [*spec.dims, *spec.variants, *spec.tunables, *spec.let]
                if "stride_multiple" in rest:  # the contract holds a number
                    return [*static, *spec.variants]
                if field == "work":  # a count may use the counts before it
                    names += list(spec.work)[: list(spec.work).index(str(rest[0]))]
                return [*names, ANY] if "strides" in rest else names
            case ("tunables", str(name), *_):
                order = list(spec.tunables)
                return [*static, *spec.variants, *order[: order.index(name)]]
            case ("defaults", *_):
                return [*static, *spec.variants]
            case ("let", str(name)):
                order = list(spec.let)
                return [*static, *spec.variants, *spec.tunables, *ARCH_NAMES, *order[: order.index(name)]]
        names = [*static, *spec.variants, *spec.let, *ARCH_NAMES]
        arch = self._arch_of(path)
        names += spec.on(arch) if arch else [name for name, item in spec.tunables.items() if item.per_arch is None]
        if not arch:  # on every arch
            names += [n for n, item in spec.tunables.items() if item.per_arch and all(item.on(a) for a in spec.archs)]
        for place, storage in self._storages():
            if path[: len(place)] == place:
                order = list(storage.let)
                inside = path[len(place) :]
                names += order[: order.index(str(inside[1]))] if inside[0] == "let" else order
        return names

    def _arch_of(self, path: Path) -> str | None:
        match path:
            case ("constraints", int(index), *_):
                return self.spec.constraints[index].arch
            case ("storage", str(arch), *_) | ("kernels", int(), "storage", str(arch), *_):
                return arch
        return None

    def _names(self, path: Path, expr: Expression, scope: list[str]) -> None:
        known = set(scope)
        for name in expr.names:
            if name not in known:
                shown = name.replace(MODEL_PREFIX, "$model.")
                valid = one_of((item.replace(MODEL_PREFIX, "$model.") for item in scope), shown)
                self.refuse(path, Words(f"the name {shown} in {expr.text!r}"), valid)
        for name, word in expr.words:
            values: list[Any] = []
            if name in self.spec.tunables:
                values = [value for arch in self.spec.archs for value in self.spec.tunables[name].on(arch)]
            elif name in self.spec.variants:
                values = list(self.spec.variants[name].values)
            if word not in values:
                self.refuse(path, Words(f"{name} compared with {word!r}"), one_of(dict.fromkeys(values), word))


def has(values: tuple[Any, ...], value: Any) -> bool:
    """Whether ``value`` is one of ``values`` of the same type (``true`` is not ``1``)."""
    return any(type(item) is type(value) and item == value for item in values)


def expressions(value: Any, path: Path = ()) -> Iterator[tuple[Path, Expression]]:
    """Every expression below ``value`` with its path in the file."""
    if isinstance(value, Expression):
        yield path, value
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from expressions(getattr(value, key), (*path, key))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from expressions(item, (*path, key))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from expressions(item, (*path, index))
