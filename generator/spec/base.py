"""What all spec models share: strictness, names, dtypes, expressions, and errors that say what would be valid."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, ValidationError, model_validator

from dsv4.generator.spec.errors import Invalid, SpecError, Words, one_of
from dsv4.generator.spec.expression import Expression, parse_expression
from dsv4.generator.spec.yaml_source import Path, Source, dotted
from dsv4.runtime.artifact import digest

DTYPE_BITS: dict[str, int] = {
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "i8": 8,
    "u8": 8,
    "i32": 32,
    "i64": 64,
    "e4m3": 8,
    "e5m2": 8,
    "e8m0": 8,
    "e2m1x2": 8,
    "bool": 8,
}
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}\Z")
_RESERVED = {"and", "or", "not", "if", "else", "in", "is", "true", "false", "None", "lambda", "for", "op", "arch"}
_TEMPLATE = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*\.py\.j2\Z")


def identifier(value: object) -> str:
    """``value`` if it may be a name in an emitted file. Raises Invalid."""
    if not isinstance(value, str) or not _IDENTIFIER.match(value) or "__" in value:
        raise Invalid(value, "a name of letters, digits and _ that starts with a letter (at most 48 characters)")
    if value in _RESERVED:
        raise Invalid(value, "a name that is no reserved word")
    return value


def dtype_name(value: object) -> str:
    if value not in DTYPE_BITS:
        raise Invalid(value, one_of(DTYPE_BITS, value))
    return str(value)


def template_path(value: object) -> str:
    if not isinstance(value, str) or not _TEMPLATE.match(value):
        raise Invalid(value, "family/name.py.j2 in lower case, below generator/templates")
    return value


def expression(value: object) -> Expression:
    if isinstance(value, Expression):
        return value
    if not isinstance(value, str | int | float | bool):
        raise Invalid(value, "a number or an expression")
    return parse_expression(value)


def positive(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise Invalid(value, "a positive integer")
    return value


def text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 400:
        raise Invalid(value, "text of at most 400 characters")
    return " ".join(value.split())


Name = Annotated[str, BeforeValidator(identifier)]
Dtype = Annotated[str, BeforeValidator(dtype_name)]
Template = Annotated[str, BeforeValidator(template_path)]
Expr = Annotated[Expression, BeforeValidator(expression)]
Positive = Annotated[int, BeforeValidator(positive)]
Text = Annotated[str, BeforeValidator(text)]

M = TypeVar("M", bound="Strict")


class Strict(BaseModel):
    """A mapping of a spec: no unknown key, no missing one, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    _sha256: str = PrivateAttr("")

    @property
    def sha256(self) -> str:
        """The digest of the file's data (comments and spelling do not count); empty below the top of a file."""
        return self._sha256

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        """``data`` written out in full; overridden by models that have a short form."""
        return data

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, data: Any) -> Any:
        if isinstance(data, cls):
            return data
        data = cls.shorthand(data)
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        valid = sorted(fields, key=lambda key: not fields[key].is_required())
        if not isinstance(data, dict):
            raise Invalid(data, f"a mapping with {', '.join(valid)}")
        for key in data:
            if key not in fields:
                raise Invalid(Words("an unknown field"), one_of(valid, key), field=str(key))
        for key in valid:
            if key not in data and fields[key].is_required():
                expected = fields[key].description or f"a value for {key}"
                raise Invalid(Words("nothing (the field is missing)"), expected, field=key)
        return data


_VALID_BY_TYPE = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of names",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than_equal": "a number of at most {le}",
    "too_long": "a list of at most {max_length} values",
    "too_short": "a list of at least {min_length} values",
    "literal_error": "{expected}",
    "missing": "a value (the field is missing)",
    "extra_forbidden": "no such field",
}


def validate(model: type[M], source: Source) -> M:
    """``source`` as ``model``. Raises SpecError for the first wrong field of the file (by line)."""
    try:
        spec = model.model_validate(jsonlike(source.data))
    except ValidationError as error:
        found = [_finding(item, source) for item in _causes(error.errors(include_url=False))]
        found.sort(key=lambda item: item[0])
        line, path, wrong, valid = found[0]
        raise SpecError(dotted(path), wrong, valid, file=source.file, line=line, more=len(found) - 1) from None
    spec._sha256 = digest(source.data)
    return spec


def _causes(items: list[Any]) -> list[Any]:
    """``items`` without lists that are too short only because one of their values is wrong."""
    places = [item["loc"] for item in items]
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(place[: len(item["loc"])] == item["loc"] and len(place) > len(item["loc"]) for place in places)
    ]


def jsonlike(value: Any) -> Any:
    """Lists as tuples, so that strict tuple fields accept them."""
    if isinstance(value, dict):
        return {key: jsonlike(item) for key, item in value.items()}
    return tuple(jsonlike(item) for item in value) if isinstance(value, list) else value


def _finding(item: Any, source: Source) -> tuple[int, Path, object, str]:
    path: Path = tuple(part for part in item["loc"] if part != "[key]")
    found: object = item["input"]
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, Invalid):
        found, valid = cause.found, cause.valid
        path += tuple(cause.field.split(".")) if cause.field else ()
    else:
        pattern = _VALID_BY_TYPE.get(item["type"], item["msg"])
        valid = pattern.format(**item.get("ctx", {}))
    return source.line(path), path, found, valid
