"""The argument contract of a kernel, derived from its operator's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dsv4.generator.spec.expression import Expression, Value, parse_expression
from dsv4.generator.spec.op_schema import OpSpec
from dsv4.generator.spec.tensor_schema import Operand, Tensor
from dsv4.runtime.artifact import Argument, Contract

Role = Literal["input", "output", "inout", "workspace"]


def build_contract(spec: OpSpec, static: Mapping[str, int], scope: Mapping[str, Value]) -> Contract:
    """The contract of one kernel of ``spec``: arguments in call order.

    ``static`` holds the static dimensions, ``scope`` these plus flags and tunables. Arguments come as ``arguments:``
    lists them, else inputs, operands, outputs, workspace, scalars. A size that is known is a number, a dimension of the
    call is its name, and anything else an expression of names (``T*6``).
    """
    by_name: dict[str, list[Argument]] = {}
    for name, tensor in spec.tensors.items():
        by_name[name] = [_tensor(spec, name, tensor, "inout" if name in spec.mutates else "input", scope)]
    for name, operand in spec.operands.items():
        by_name[name] = _operand(name, operand, "inout" if name in spec.mutates else "input", scope)
    for name, output in spec.outputs.items():
        role: Role = "inout" if name in spec.mutates else "output"
        if isinstance(output, Operand):
            by_name[name] = _operand(name, output, role, scope)
        else:
            by_name[name] = [_tensor(spec, name, output, role, scope)]
    for name, tensor in spec.workspace.items():
        by_name[name] = [_tensor(spec, name, tensor, "workspace", scope)]
    for name, scalar in spec.scalars.items():
        by_name[name] = [Argument(name=name, kind="scalar", dtype=scalar.dtype, align=1)]
    order = spec.arguments or tuple(by_name)
    dims = {name: static.get(name) for name in spec.dims}
    return Contract(dims=dims, arguments=tuple(argument for name in order for argument in by_name[name]))


def _tensor(spec: OpSpec, name: str, tensor: Tensor, role: Role, scope: Mapping[str, Value]) -> Argument:
    if tensor.layout is not None:  # pages as rows of bytes; the rows of a page may be known at the call only
        layout = spec.layouts[tensor.layout]
        row_bytes = layout.row_bytes + layout.tail_bytes
        page_bytes = f"round_up({tensor.page}*{row_bytes}, {layout.page_align})"
        shape: tuple[int | str, ...] = (size(str(tensor.pages), scope), size(page_bytes, scope))
        strides: tuple[int | str, ...] = ("any", 1)
        dtype, multiple = "u8", layout.page_align
    else:
        assert tensor.shape is not None
        shape = tuple(size(item, scope) for item in tensor.shape)
        strides = _compact(shape) if tensor.strides is None else tuple(size(item, scope) for item in tensor.strides)
        dtype, multiple = tensor.dtype_in(scope), tensor.stride_multiple.integer(scope)
    absent = tensor.optional is not None and not scope[tensor.optional]
    if tensor.when is not None:
        absent = absent or not tensor.when(scope)
    return Argument(
        name=name,
        kind="tensor",
        dtype=dtype,
        shape=shape,
        strides=strides,
        stride_multiple=multiple,
        align=tensor.align,
        optional=absent,
        role=role,
    )


def _operand(name: str, operand: Operand, role: Role, scope: Mapping[str, Value]) -> list[Argument]:
    absent = operand.optional is not None and not scope[operand.optional]
    parts = (
        (name, operand.codes.dtype, tuple(size(item, scope) for item in operand.codes.shape)),
        (f"{name}_scale", operand.scale.dtype, tuple(size(item, scope) for item in operand.scale_shape())),
    )
    return [
        Argument(
            name=part,
            kind="tensor",
            dtype=dtype,
            shape=shape,
            strides=_compact(shape),
            align=operand.align,
            optional=absent,
            role=role,
        )
        for part, dtype, shape in parts
    ]


def size(item: Expression | str, scope: Mapping[str, Value]) -> int | str:
    """A number if every name in ``item`` is in ``scope``, else the name or the expression.

    Of ``x if c else y`` the part that flags and static dimensions choose.
    """
    expr = (parse_expression(item) if isinstance(item, str) else item).chosen(scope)
    return expr.integer(scope) if all(name in scope for name in expr.names) else expr.text


def _compact(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Row-major strides of ``shape``."""
    strides: list[int | str] = []
    number, names = 1, ""
    for extent in reversed(shape):
        strides.append(f"{number}*{names}" if names and number > 1 else names or number)
        if isinstance(extent, int):
            number *= extent
        else:
            part = extent if extent.isidentifier() else f"({extent})"
            names = f"{part}*{names}" if names else part
    return tuple(reversed(strides))
