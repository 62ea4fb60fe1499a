"""Finds, reads and checks the files of ``specs/``."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from dsv4.generator.spec.base import validate
from dsv4.generator.spec.checks import check_op
from dsv4.generator.spec.chip_schema import ArchSpec, ModelSpec
from dsv4.generator.spec.errors import SpecError, one_of
from dsv4.generator.spec.op_schema import OpSpec
from dsv4.generator.spec.yaml_source import Source, parse


def _names(folder: str) -> list[str]:
    found = (entry.name for entry in files("dsv4.specs").joinpath(folder).iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def list_ops(*, planned: bool = True) -> list[str]:
    """The operators that have a spec, by name; without those of ``status: planned`` if ``planned`` is False."""
    names = _names("ops")
    return names if planned else [name for name in names if load_op(name).status == "ready"]


def list_archs() -> list[str]:
    return _names("archs")


def list_models() -> list[str]:
    return _names("models")


def _source(kind: str, folder: str, name: str) -> Source:
    names = _names(folder)
    if name not in names:
        raise SpecError(kind, name, one_of(names, name))
    file = f"specs/{folder}/{name}.yaml"
    return parse(files("dsv4.specs").joinpath(folder, f"{name}.yaml").read_text(encoding="utf-8"), file)


@lru_cache(maxsize=256)
def load_op(name: str) -> OpSpec:
    """``specs/ops/<name>.yaml``. Raises SpecError with file, line and field."""
    return _op(_source("op", "ops", name), name)


@lru_cache(maxsize=64)
def load_arch(name: str) -> ArchSpec:
    """``specs/archs/<name>.yaml``. Raises SpecError with file, line and field."""
    source = _source("arch", "archs", name)
    spec = validate(ArchSpec, source)
    _check_stem(source, "arch", spec.arch, name)
    return spec


@lru_cache(maxsize=64)
def load_model(name: str) -> ModelSpec:
    """``specs/models/<name>.yaml``. Raises SpecError with file, line and field."""
    source = _source("model", "models", name)
    spec = validate(ModelSpec, source)
    _check_stem(source, "model", spec.model, name)
    return spec


def read_op(text: str, file: str) -> OpSpec:
    """An operator spec from text; ``file`` is the name that errors show. Raises SpecError."""
    source = parse(text, file)
    return _op(source, None)


def _op(source: Source, stem: str | None) -> OpSpec:
    spec = validate(OpSpec, source)
    if stem is not None:
        _check_stem(source, "op", spec.op, stem)
    check_op(spec, source, known_archs=list_archs(), model_names=ModelSpec.sizes())
    return spec


def _check_stem(source: Source, field: str, found: str, stem: str) -> None:
    if found != stem:
        raise SpecError(field, found, f"{stem}, as the file's name", file=source.file, line=source.line((field,)))
