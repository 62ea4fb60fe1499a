"""``storage``: what one launch takes on one arch, in expressions of dimensions, flags and tunables."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dsv4.generator.spec.base import Dtype, Expr, Name, Strict
from dsv4.generator.spec.errors import Invalid
from dsv4.generator.spec.expression import parse_expression

ONE = parse_expression(1)


class SmemItem(Strict):
    """A shared-memory region, in struct order. One of ``bytes``, ``elements`` (of ``dtype``) or ``barriers`` (mbarriers
    of 8 bytes). ``align`` in bytes (mbarriers 8, others 16 unless given). ``alias``: on the bytes of another region.
    ``when`` false: the region does not exist."""

    name: Name
    bytes: Expr | None = None
    elements: Expr | None = None
    barriers: Expr | None = None
    dtype: Dtype | None = None
    align: Expr | None = None
    alias: Name | None = None
    when: Expr | None = None

    def model_post_init(self, _: Any) -> None:
        given = [key for key in ("bytes", "elements", "barriers") if getattr(self, key) is not None]
        if len(given) != 1:
            raise Invalid(", ".join(given) or "none", "exactly one of bytes, elements, barriers", field="bytes")
        if self.elements is not None and self.dtype is None:
            raise Invalid("nothing", "the dtype of the elements", field="dtype")
        if self.barriers is not None and (self.dtype is not None or self.alias is not None):
            raise Invalid("dtype or alias", "neither for barriers", field="barriers")


class TmemItem(Strict):
    """A TMEM region of ``columns`` 32-bit columns, or ``count`` of them (``name0``, ``name1``, …), one after the other.

    ``overlaps`` puts the region (region i of ``count``) onto that of another name, ``offset`` columns in, on purpose.
    """

    name: Name
    columns: Expr
    count: Expr | None = None
    lanes: Expr = parse_expression(128)
    first_lane: Expr = parse_expression(0)
    align: Expr = parse_expression(4)
    dtype: Dtype = "f32"
    overlaps: Name | None = None
    offset: Expr = parse_expression(0)
    when: Expr | None = None


class RoleItem(Strict):
    """``warps`` warps with one job, in warp order. ``registers``: the setmaxnreg value (left out: no setmaxnreg)."""

    name: Name
    warps: Expr
    registers: Expr | None = None
    when: Expr | None = None


class TmaItem(Strict):
    """A TMA descriptor over ``tensor``: ``box`` in elements, outermost first, one extent for each dimension of the view
    that the kernel takes (at most 5); ``swizzle`` 0, 32, 64 or 128 bytes; ``into``: its shared-memory region; ``dtype``
    where it is not the tensor's own (a paged layout read as bytes)."""

    tensor: Name
    box: tuple[Expr, ...] = Field(min_length=1)
    swizzle: Expr = parse_expression(0)
    into: Name | None = None
    dtype: Dtype | None = None
    name: Name | None = None
    when: Expr | None = None


class Storage(Strict):
    """One launch on one arch. ``let``: names for expressions used below, evaluated in order. ``named_barriers``: how
    many of the CTA's barriers are used (sync_threads is one)."""

    let: dict[Name, Expr] = Field({})
    allocation: Literal["struct", "separate"] = "struct"
    smem: tuple[SmemItem, ...] = ()
    tmem: tuple[TmemItem, ...] = ()
    roles: tuple[RoleItem, ...] = Field(min_length=1, description="a list of roles, each {name, warps, registers}")
    tma: tuple[TmaItem, ...] = ()
    cluster: tuple[Expr, Expr, Expr] = (ONE, ONE, ONE)
    non_portable_cluster: bool = False
    blocks_per_sm: Expr = ONE
    launch_registers: Expr | None = None
    named_barriers: Expr = ONE
