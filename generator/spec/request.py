"""Evaluates a spec's ``storage`` block: from expressions to the numbers that the resource model places."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4.generator.resources import KernelRequest, Refused, RoleRequest, SmemRequest, TmaRequest, TmemRequest
from dsv4.generator.spec.base import DTYPE_BITS
from dsv4.generator.spec.expression import Expression, Unevaluable, Value
from dsv4.generator.spec.resolve import holds
from dsv4.generator.spec.storage_schema import SmemItem, Storage, TmaItem, TmemItem
from dsv4.runtime.artifact import Argument, Contract

BARRIER_BYTES = 8
DEFAULT_ALIGN_BYTES = 16


def request_for(
    name: str, storage: Storage, where: str, scope: Mapping[str, Value], contract: Contract
) -> KernelRequest:
    """The numbers of ``storage`` in ``scope``; ``where`` (``storage.sm_90a``) starts every field that a reason names.

    Raises Refused if an expression has no value (a division by zero, a fraction of a byte).
    """
    names = evaluate_let(storage.let, where, scope)
    builder = _Builder(where, names, {argument.name: argument for argument in contract.arguments})
    number = builder.number
    return KernelRequest(
        name=name,
        smem=tuple(builder.smem(index, item) for index, item in enumerate(storage.smem) if builder.exists(item.when)),
        tmem=tuple(
            part
            for index, item in enumerate(storage.tmem)
            if builder.exists(item.when)
            for part in builder.tmem(index, item)
        ),
        roles=tuple(
            RoleRequest(
                name=item.name,
                warps=number(f"roles[{index}].warps", item.warps),
                registers=None if item.registers is None else number(f"roles[{index}].registers", item.registers),
                field=f"{where}.roles[{index}]",
            )
            for index, item in enumerate(storage.roles)
            if builder.exists(item.when)
        ),
        tma=tuple(builder.tma(index, item) for index, item in enumerate(storage.tma) if builder.exists(item.when)),
        allocation=storage.allocation,
        cluster=(
            number("cluster[0]", storage.cluster[0]),
            number("cluster[1]", storage.cluster[1]),
            number("cluster[2]", storage.cluster[2]),
        ),
        non_portable_cluster=storage.non_portable_cluster,
        named_barriers=number("named_barriers", storage.named_barriers),
        blocks_per_sm=number("blocks_per_sm", storage.blocks_per_sm),
        launch_registers=None
        if storage.launch_registers is None
        else number("launch_registers", storage.launch_registers),
    )


def evaluate_let(let: Mapping[str, Expression], where: str, scope: Mapping[str, Value]) -> dict[str, Value]:
    """``scope`` and the values of ``let``, evaluated in order. Raises Refused."""
    names = dict(scope)
    for name, expr in let.items():
        try:
            names[name] = expr(names)
        except Unevaluable as problem:
            raise Refused([f"{where}.let.{name}: {problem}; valid: other values of {', '.join(expr.names)}"]) from None
    return names


class _Builder:
    def __init__(self, where: str, scope: Mapping[str, Value], arguments: Mapping[str, Argument]) -> None:
        self.where, self.scope, self.arguments = where, scope, arguments

    def exists(self, when: Expression | None) -> bool:
        return holds(when, self.scope)

    def number(self, field: str, expr: Expression) -> int:
        try:
            return expr.integer(self.scope)
        except Unevaluable as problem:
            valid = f"other values of {', '.join(expr.names)}" if expr.names else "a whole number"
            raise Refused([f"{self.where}.{field}: {problem}; valid: {valid}"]) from None

    def smem(self, index: int, item: SmemItem) -> SmemRequest:
        field = f"smem[{index}]"
        barriers = 0
        if item.barriers is not None:
            barriers = elements = self.number(f"{field}.barriers", item.barriers)
            dtype, size_bytes, align_bytes = "i64", barriers * BARRIER_BYTES, BARRIER_BYTES
        elif item.elements is not None:
            dtype = str(item.dtype)
            elements = self.number(f"{field}.elements", item.elements)
            size_bytes, align_bytes = elements * DTYPE_BITS[dtype] // 8, DEFAULT_ALIGN_BYTES
        else:
            assert item.bytes is not None
            dtype = item.dtype or "u8"
            size_bytes, align_bytes = self.number(f"{field}.bytes", item.bytes), DEFAULT_ALIGN_BYTES
            elements = size_bytes * 8 // DTYPE_BITS[dtype]
        if item.align is not None:
            align_bytes = self.number(f"{field}.align", item.align)
        return SmemRequest(
            name=item.name,
            size_bytes=size_bytes,
            align_bytes=align_bytes,
            dtype=dtype,
            elements=elements,
            alias=item.alias,
            barriers=barriers,
            field=f"{self.where}.{field}",
        )

    def tmem(self, index: int, item: TmemItem) -> list[TmemRequest]:
        field = f"tmem[{index}]"
        count = None if item.count is None else self.number(f"{field}.count", item.count)
        return [
            TmemRequest(
                name=item.name + suffix,
                columns=self.number(f"{field}.columns", item.columns),
                lanes=self.number(f"{field}.lanes", item.lanes),
                first_lane=self.number(f"{field}.first_lane", item.first_lane),
                align_columns=self.number(f"{field}.align", item.align),
                dtype=item.dtype,
                overlaps=None if item.overlaps is None else item.overlaps + suffix,
                offset_columns=self.number(f"{field}.offset", item.offset),
                field=f"{self.where}.{field}",
            )
            for suffix in ([""] if count is None else map(str, range(count)))
        ]

    def tma(self, index: int, item: TmaItem) -> TmaRequest:
        field = f"tma[{index}]"
        argument = self.arguments[item.tensor]
        bits, own_bits = DTYPE_BITS[item.dtype or argument.dtype], DTYPE_BITS[argument.dtype]
        # the innermost stride is 1 by definition of a box; the others must be multiples of 16 B
        outer = argument.strides[:-1]
        known = tuple(stride * own_bits // 8 if isinstance(stride, int) else None for stride in outer)
        free_bytes = argument.stride_multiple * own_bits // 8 if "any" in outer else 16
        return TmaRequest(
            name=item.name or item.tensor,
            tensor=item.tensor,
            element_bits=bits,
            box=tuple(self.number(f"{field}.box[{axis}]", extent) for axis, extent in enumerate(item.box)),
            stride_multiple_bytes=free_bytes,
            strides_bytes=known,
            swizzle_bytes=self.number(f"{field}.swizzle", item.swizzle),
            into=item.into,
            field=f"{self.where}.{field}",
        )
