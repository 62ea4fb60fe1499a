"""Dimensions, flags and tunables: the three kinds of named values that a kernel is made for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dsv4.generator.spec.base import Expr, Name, Positive, Strict, Text, expression, identifier
from dsv4.generator.spec.errors import Invalid
from dsv4.generator.spec.expression import Expression
from dsv4.runtime.artifact import Scalar

MAX_VALUES = 256
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?::(\d+))?\Z")


def scalar_values(value: object) -> tuple[Scalar, ...]:
    """A list of integers, booleans, words and ranges (``1..16``, ``32..256:32``), written out. Raises Invalid."""
    items = value if isinstance(value, tuple | list) else (value,)
    values: list[Scalar] = []
    for item in items:
        match = _RANGE.match(item) if isinstance(item, str) else None
        if match:
            first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
            if first > last or step < 1 or (last - first) // step >= MAX_VALUES:
                raise Invalid(item, f"a range low..high or low..high:step of at most {MAX_VALUES} values")
            values += range(first, last + 1, step)
        elif isinstance(item, bool | int):
            values.append(item)
        elif isinstance(item, str):
            values.append(identifier(item))
        else:
            raise Invalid(item, "integers, true/false, names, or ranges such as 1..16 or 32..256:32")
    if not values or len(values) > MAX_VALUES:
        raise Invalid(value, f"a list of 1 to {MAX_VALUES} values")
    if len({(type(item), item) for item in values}) != len(values):
        raise Invalid(value, "a list without repetitions")
    if len({type(item) for item in values}) > 1:
        raise Invalid(value, "values of one kind: integers, true/false or names")
    return tuple(values)


Values = Annotated[tuple[Scalar, ...], BeforeValidator(scalar_values)]


class Dim(Strict):
    """A named dimension.

    * ``512`` or ``"2*$model.moe_inter"``: one static size (short for ``{value: …}``).
    * ``{static: [64, 128], default: 128, multiple_of: 16, min: 16, max: 512}``: static, one kernel a size; ``static``
      lists the default kernels, an override may be any size that the rest allows.
    * ``{dynamic: any}``, ``{dynamic: [1, 2, 4]}`` (bucket bounds), ``{dynamic: pow2, min: 1, max: 32768}``,
      ``{dynamic: any, multiple_of: 64, max: 8192}``: known at the call.
    * ``{derived: "T*6"}``: follows from other dimensions at the call.
    """

    value: Expr | None = None
    static: tuple[Positive, ...] | None = Field(None, min_length=1)
    default: Expr | None = None
    dynamic: Literal["any", "pow2"] | tuple[Positive, ...] | None = None
    derived: Expr | None = None
    multiple_of: Positive = 1
    min: int | None = None
    max: Positive | None = None
    doc: Text = ""

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, int | str):
            return {"value": data}
        if isinstance(data, dict) and "dynamic_multiple_of" in data:
            rest = {key: item for key, item in data.items() if key != "dynamic_multiple_of"}
            return {"dynamic": "any", "multiple_of": data["dynamic_multiple_of"], **rest}
        if isinstance(data, dict) and isinstance(data.get("static"), int):
            return {**data, "static": (data["static"],)}
        return data

    def model_post_init(self, _: Any) -> None:
        kinds = [key for key in ("value", "static", "dynamic", "derived") if getattr(self, key) is not None]
        if len(kinds) != 1:
            raise Invalid(", ".join(kinds) or "none", "exactly one of value, static, dynamic, derived")
        for size in self.static or ():
            problem = self.problem(size)
            if problem:
                raise Invalid(size, problem, field="static")

    @property
    def is_static(self) -> bool:
        return self.value is not None or self.static is not None

    def problem(self, size: int) -> str | None:
        """What would be valid instead of ``size``, or None if it is valid."""
        low, high = max(1, self.min if self.min is not None else 1), self.max
        if size >= low and (high is None or size <= high) and size % self.multiple_of == 0:
            return None
        multiple = f"multiples of {self.multiple_of}" if self.multiple_of > 1 else "sizes"
        return f"{multiple} from {low}" + (f" to {high}" if high else "")


class Variant(Strict):
    """A flag that a compiled kernel takes: ``[false, true]``, or ``{values: […], default: …}``; the first value is
    the default unless ``default`` names another."""

    values: Values
    default: bool | int | str | None = None
    doc: Text = ""

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        return {"values": data} if isinstance(data, tuple | list) else data

    def model_post_init(self, _: Any) -> None:
        if self.default is not None and self.default not in self.values:
            raise Invalid(self.default, ", ".join(map(str, self.values)), field="default")

    @property
    def standard(self) -> Scalar:
        return self.values[0] if self.default is None else self.default


class Tunable(Strict):
    """A value that the tuner may choose: ``[64, 128]``, ``{sm_90a: [1], sm_100a: [1, 2]}`` (one list an arch; an arch
    that is not listed does not have the tunable), or ``{values: …, when: "H < 64", otherwise: 1}``.

    ``when`` false: the tunable is not searched and holds ``otherwise`` (the first value unless given).
    """

    values: Values | None = None
    per_arch: dict[Name, Values] | None = None
    when: Expr | None = None
    otherwise: bool | int | str | None = None
    doc: Text = ""

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, tuple | list):
            return {"values": data}
        if isinstance(data, dict) and data and all(str(key).startswith("sm_") for key in data):
            return {"per_arch": data}
        if isinstance(data, dict) and isinstance(data.get("values"), dict):
            rest = {key: item for key, item in data.items() if key != "values"}
            return {**rest, "per_arch": data["values"]}
        if isinstance(data, dict) and "when" in data and "values" not in data and "per_arch" not in data:
            return {**data, "values": (False, True)}
        return data

    def model_post_init(self, _: Any) -> None:
        if (self.values is None) == (self.per_arch is None):
            raise Invalid("both or none", "exactly one of values, per_arch", field="values")

    def on(self, arch: str) -> tuple[Scalar, ...]:
        """The values on ``arch``; empty where the tunable does not exist."""
        return self.values if self.values is not None else (self.per_arch or {}).get(arch, ())

    def fixed(self, arch: str) -> Scalar:
        """The value while ``when`` is false."""
        return self.on(arch)[0] if self.otherwise is None else self.otherwise


def setting(value: object) -> Scalar | Expression:
    """A value as it stands, or an expression of dimensions and flags (whatever is no single word)."""
    if isinstance(value, str) and not value.isidentifier():
        return expression(value)
    if not isinstance(value, bool | int | str):
        raise Invalid(value, "a value of the tunable, or an expression of dimensions and flags")
    return value


Setting = Annotated[bool | int | str | Expression, BeforeValidator(setting)]


class DefaultRule(Strict):
    """Values of a default configuration, all of them or those for dimensions and flags where ``when`` holds."""

    set: dict[Name, Setting]
    when: Expr | None = None
