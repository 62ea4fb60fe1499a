"""The schema of ``specs/ops/<op>.yaml``; every key is explained in docs/spec.md."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dsv4.generator.spec.base import Expr, Name, Strict, Template, Text
from dsv4.generator.spec.errors import Invalid
from dsv4.generator.spec.storage_schema import Storage
from dsv4.generator.spec.tensor_schema import Layout, Operand, Ragged, ScalarArgument, Tensor
from dsv4.generator.spec.tunable_schema import DefaultRule, Dim, Setting, Tunable, Values, Variant


class Kernel(Strict):
    """One launch of an operator. ``storage`` is given here for launches after the first (whose storage is the op's)."""

    name: Name
    when: Expr | None = None
    storage: dict[Name, Storage] = Field({})


class Constraint(Strict):
    """A rule that only the operator knows. ``check`` must hold; ``reason`` is printed when it does not; ``arch`` limits
    the rule to one arch."""

    check: Expr
    reason: Text = ""
    arch: Name | None = None

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        return {"check": data} if isinstance(data, str) else data


class EpilogueStage(Strict):
    """A stage of the epilogue: ``silu_mul``, or ``clamp_gate_max: 10`` with its operand (a number or a name)."""

    stage: Name
    operand: float | int | Name | None = None

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"stage": data}
        if isinstance(data, dict) and len(data) == 1 and "stage" not in data:
            ((stage, operand),) = data.items()
            return {"stage": stage, "operand": operand}
        return data


class Numerics(Strict):
    """How right a kernel must be. ``reference``: a module of runtime/reference. ``tolerance``: a named one, or numbers.

    ``class`` and the values of the tunables in ``order`` (those that change the order of accumulation) make the numeric
    class: kernels of equal class give equal bits.
    """

    reference: Name
    numeric_class: Name = Field(alias="class", description="the name of the accumulation class")
    order: tuple[Name, ...] = ()
    tolerance: Name | dict[Name, float | int]


class BuildRule(Strict):
    """Default kernels: the product of the values given for dimensions and flags. What is left out: every ``static``
    size of a dimension, the default of a flag. ``archs``: only on these. ``when`` drops combinations."""

    dims: dict[Name, tuple[int, ...]] = Field({})
    variants: dict[Name, Values] = Field({})
    archs: tuple[Name, ...] = ()
    when: Expr | None = None


class BucketRule(Strict):
    """Default kernels of their own for calls of some sizes: the default configuration but for ``set``.

    ``sizes``: the least and the largest size of dynamic dimensions, both inclusive, null where there is no largest.
    ``archs``: only on these; ``when``: only for these static dimensions and flags.
    """

    sizes: dict[Name, tuple[int, int | None]] = Field(min_length=1, description="bounds of dynamic dimensions")
    set: dict[Name, Setting] = Field(min_length=1, description="values of tunables")
    archs: tuple[Name, ...] = ()
    when: Expr | None = None

    def model_post_init(self, _: Any) -> None:
        for low, high in self.sizes.values():
            if low < 0 or (high is not None and high < low):
                raise Invalid(
                    [low, high], "a least size from 0 on and a largest one from there on, or null", field="sizes"
                )


class OpNode(Strict):
    """One operator in the graph of a composed operator."""

    op: Name
    reads: tuple[Name, ...] = ()
    writes: tuple[Name, ...] = ()

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        return {"op": data} if isinstance(data, str) else data


class OpSpec(Strict):
    """An operator: what it computes, its arguments, what may be tuned, and what it takes on each arch."""

    op: Name
    doc: Text = Field(description="one sentence: what the operator computes")
    status: Literal["ready", "planned"] = "ready"
    template: dict[Name, Template] = Field(
        min_length=1, description="a template for each arch: {sm_90a: family/x.py.j2}"
    )
    kernels: tuple[Kernel, ...] = ()
    dims: dict[Name, Dim] = Field(min_length=1, description="a mapping of dimensions")
    layouts: dict[Name, Layout] = Field({})
    tensors: dict[Name, Tensor] = Field({})
    operands: dict[Name, Operand] = Field({})
    outputs: dict[Name, Tensor | Operand] = Field(min_length=1, description="a mapping of output tensors")
    workspace: dict[Name, Tensor] = Field({})
    scalars: dict[Name, ScalarArgument] = Field({})
    arguments: tuple[Name, ...] | None = None
    mutates: tuple[Name, ...] = ()
    ragged: dict[Name, Ragged] = Field({})
    variants: dict[Name, Variant] = Field({})
    tunables: dict[Name, Tunable] = Field({})
    let: dict[Name, Expr] = Field({})
    constraints: tuple[Constraint, ...] = ()
    requires: dict[Name, tuple[Name, ...]] = Field({})
    epilogue: tuple[EpilogueStage, ...] = ()
    storage: dict[Name, Storage] = Field(min_length=1, description="the storage on each arch")
    work: dict[Name, Expr] = Field({})
    equivalent_to: tuple[Name, ...] = ()
    op_graph: tuple[OpNode, ...] = ()
    numerics: Numerics
    defaults: dict[Name, tuple[DefaultRule, ...]] = Field(min_length=1, description="a configuration for each arch")
    buckets: tuple[BucketRule, ...] = ()
    build: tuple[BuildRule, ...] = ()
    forbid_spills: bool = False
    compile_seconds_limit: float = Field(60.0, gt=0)

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("compile_seconds_limit"), int):
            data["compile_seconds_limit"] = float(data["compile_seconds_limit"])
        if isinstance(data.get("defaults"), dict):
            data["defaults"] = {arch: _rules(rules) for arch, rules in data["defaults"].items()}
        if isinstance(data.get("outputs"), dict):  # decided here, so that an error is about the one that was meant
            data["outputs"] = {key: _output(value) for key, value in data["outputs"].items()}
        return data

    @property
    def archs(self) -> tuple[str, ...]:
        """The archs that the operator is written for."""
        return tuple(self.template)

    def on(self, arch: str) -> dict[str, Tunable]:
        """The tunables that exist on ``arch``."""
        return {name: tunable for name, tunable in self.tunables.items() if tunable.on(arch)}


def _rules(rules: Any) -> Any:
    """A default configuration as a plain mapping is short for one rule without a condition."""
    if isinstance(rules, dict) and "set" not in rules:
        return ({"set": rules},)
    return (rules,) if isinstance(rules, dict) else rules


def _output(value: Any) -> Any:
    if not isinstance(value, dict):
        raise Invalid(value, "a mapping with shape and dtype, or with codes and scale", field="outputs")
    return (Operand if "codes" in value else Tensor).model_validate(value)
