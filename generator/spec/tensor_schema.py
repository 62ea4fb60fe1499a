"""Arguments of an operator: tensors, paged layouts, quantised operands, scalars, workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dsv4.generator.spec.base import DTYPE_BITS, Dtype, Expr, Name, Positive, Strict, Text, dtype_name, positive
from dsv4.generator.spec.errors import Invalid
from dsv4.generator.spec.expression import Value, parse_expression

ANY = "any"


def field_of_row(value: object) -> tuple[str, int]:
    """``[e4m3, 448]`` as (dtype, count). Raises Invalid."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise Invalid(value, "[dtype, count], for example [e4m3, 448]")
    return dtype_name(value[0]), positive(value[1])


RowField = Annotated[tuple[str, int], BeforeValidator(field_of_row)]


class Layout(Strict):
    """The bytes of one page: all rows first (``row``), then every row's tail (``tail``), ``pad`` bytes after each
    tail, the page rounded up to ``page_align`` bytes. ``row`` and ``tail`` map a name to [dtype, count]."""

    unit: Literal["page"] = "page"
    row: dict[Name, RowField] = Field(min_length=1)
    tail: dict[Name, RowField] = Field({})
    pad: int = Field(0, ge=0)
    page_align: Positive = 1
    doc: Text = ""

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("tail"), dict) and "pad" in data["tail"]:
            tail = {key: item for key, item in data["tail"].items() if key != "pad"}
            return {**data, "tail": tail, "pad": data["tail"]["pad"]}
        return data

    @property
    def row_bytes(self) -> int:
        return sum(DTYPE_BITS[dtype] * count for dtype, count in self.row.values()) // 8

    @property
    def tail_bytes(self) -> int:
        return sum(DTYPE_BITS[dtype] * count for dtype, count in self.tail.values()) // 8 + self.pad

    def page_bytes(self, rows: int) -> int:
        """Bytes of a page of ``rows`` rows."""
        return -(-rows * (self.row_bytes + self.tail_bytes) // self.page_align) * self.page_align


class Domain(Strict):
    """Which values an index tensor may hold: ``[0, K0]`` (short for ``range``), ``nondecreasing``, or in full
    ``{skip: [-1, out_of_range], range: [0, "NP0*P0"]}``: skipped values are ignored, others refused in debug mode."""

    range: tuple[Expr, Expr] | None = None
    skip: tuple[int | Name, ...] = ()
    order: Literal["nondecreasing"] | None = None

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, tuple | list):
            return {"range": data}
        return {"order": data} if isinstance(data, str) else data


class Tensor(Strict):
    """A tensor argument. ``shape``: names or expressions of dimensions. ``strides`` (elements): one for each dimension,
    ``any`` for a stride that is free up to ``stride_multiple`` (flags may decide it); left out: row-major and compact.
    ``align``: bytes. ``optional`` names the flag without which None is passed. ``layout`` + ``pages`` + ``page``: a
    pool of pages. ``dtypes`` stands for ``dtype`` where flags decide: each dtype with its condition, the first that
    holds counts."""

    shape: tuple[Expr, ...] | None = None
    dtype: Dtype | None = None
    dtypes: dict[Dtype, Expr] = Field({})
    layout: Name | None = None
    pages: Name | None = None
    page: Name | None = None
    strides: tuple[Expr, ...] | None = None
    stride_multiple: Expr = parse_expression(1)
    align: Positive = 16
    optional: Name | None = None
    when: Expr | None = None
    domain: Domain | None = None
    empty: float | int | Literal["-inf"] | None = None
    doc: Text = ""

    def model_post_init(self, _: Any) -> None:
        if self.layout is None:
            if self.dtypes and self.dtype is not None:
                raise Invalid("dtype and dtypes", "one of them", field="dtypes")
            for key in ("shape",) if self.dtypes else ("shape", "dtype"):
                if getattr(self, key) is None:
                    raise Invalid("nothing", f"a {key}, or a layout with pages and page", field=key)
            if self.pages is not None or self.page is not None:
                raise Invalid("pages or page without layout", "a layout", field="layout")
        elif self.shape is not None or self.dtype or self.dtypes or self.pages is None or self.page is None:
            raise Invalid(self.layout, "a layout with pages and page, without shape and dtype", field="layout")
        if not self.stride_multiple.names:
            multiple = self.stride_multiple({})
            if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple <= 0:
                raise Invalid(multiple, "a positive integer", field="stride_multiple")
        if self.strides is not None and self.shape is not None and len(self.strides) != len(self.shape):
            raise Invalid(
                f"{len(self.strides)} strides", f"{len(self.shape)} strides, one a dimension", field="strides"
            )

    def dtype_in(self, scope: Mapping[str, Value]) -> str:
        """The dtype under the flags in ``scope``. Raises Invalid where no condition holds."""
        if self.dtype is not None:
            return self.dtype
        for dtype, condition in self.dtypes.items():
            if condition(scope):
                return dtype
        raise Invalid("no condition that holds", "a condition for every value of the flags", field="dtypes")


class Codes(Strict):
    """The quantised values of an operand."""

    shape: tuple[Expr, ...] = Field(min_length=1)
    dtype: Dtype


class Scale(Strict):
    """The scale factors of an operand: one for each ``block`` of values along its last dimensions."""

    dtype: Dtype
    block: tuple[Positive, ...] = Field(min_length=1)
    layout: Name = "row_major"


class Operand(Strict):
    """Codes and their scales, one argument to the reader and two (``name``, ``name_scale``) in the contract.
    ``prepare``: transforms of a weight at load time, in order."""

    codes: Codes
    scale: Scale
    align: Positive = 16
    optional: Name | None = None
    prepare: tuple[Name, ...] = ()
    reversible: bool = True
    doc: Text = ""

    def scale_shape(self) -> tuple[str, ...]:
        """The scales' shape as expressions: the codes' divided by the block, e2m1x2 counting two values a byte."""
        packed = 2 if self.codes.dtype == "e2m1x2" else 1
        whole, blocked = self.codes.shape[: -len(self.scale.block)], self.codes.shape[-len(self.scale.block) :]
        if len(self.scale.block) > len(self.codes.shape):
            raise Invalid(self.scale.block, f"at most {len(self.codes.shape)} block extents", field="scale.block")
        sizes = [expr.text for expr in whole]
        for axis, (expr, block) in enumerate(zip(blocked, self.scale.block, strict=True)):
            values = f"({expr.text})*{packed}" if packed > 1 and axis == len(blocked) - 1 else expr.text
            sizes.append(values if block == 1 else f"ceil_div({values}, {block})")
        return tuple(sizes)


class ScalarArgument(Strict):
    """A number passed by value, after the tensors."""

    dtype: Dtype
    min: float | int | None = None
    max: float | int | None = None
    doc: Text = ""


class Ragged(Strict):
    """A dimension whose extents are known on the device only: ``offsets`` names the tensor of ``over`` + 1 starts, each
    a multiple of ``align``; ``sum_max`` bounds the total."""

    offsets: Name
    over: Name
    align: Expr
    sum_max: Expr
