"""What is written of each operator's launches and of each chip's rates: ``launches.yaml`` and ``chips.yaml``."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field

from dsv4.generator.spec.base import Expr, Name, Strict, Text, validate
from dsv4.generator.spec.errors import SpecError, one_of
from dsv4.generator.spec.expression import parse_expression
from dsv4.generator.spec.yaml_source import Source, parse

ZERO, ONE, TRUE = (parse_expression(value) for value in (0, 1, True))


class LaunchRule(Strict):
    """One launch of an operator; every key is explained at the top of ``launches.yaml``."""

    let: dict[Name, Expr] = Field({})
    when: Expr = TRUE
    arch: Name | None = None
    kernel: Name | None = None
    cluster: Expr | None = None
    ctas: Expr
    units: Expr | None = None
    unit_ctas: Expr = ONE
    leaving: Expr = ZERO
    bytes: Expr | None = None
    l2_bytes: Expr | None = None
    mma: Expr = ZERO
    mma_sync: Expr = ZERO
    exp2: Expr = ZERO
    smem_bytes: Expr = ZERO
    instructions: Expr
    longest: Expr | None = None
    registers: Expr | None = None
    in_flight: Expr | None = None
    trips: Expr = ONE
    syncs: Expr = ZERO
    cluster_syncs: Expr = ZERO
    cycles: Expr = ZERO
    loop_cycles: Expr = ZERO
    turn_trips: Expr = ZERO
    turn_syncs: Expr = ZERO
    turn_cluster_syncs: Expr = ZERO
    turn_cycles: Expr = ZERO
    overlap: Expr = TRUE


class OperatorRules(Strict):
    """The launches of an operator, and sizes to take where a call leaves a name open."""

    assume: dict[Name, Expr] = Field({})
    launches: tuple[LaunchRule, ...] = Field(min_length=1, description="a list of launches")

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        return {"launches": data} if isinstance(data, list | tuple) else data


class Rate(Strict):
    """A rate with its origin: nobody may take an assumption for a measurement."""

    value: float
    origin: Literal["datasheet", "documented", "measured", "assumed"]
    source: Text

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("value"), int):
            return {**data, "value": float(data["value"])}
        return data


class Clusters(Strict):
    """Pairs: CTAs of a cluster, and how many such clusters the chip holds at once with one CTA an SM."""

    value: tuple[tuple[int, int], ...]
    origin: Literal["datasheet", "documented", "measured", "assumed"]
    source: Text


class ChipRates(Strict):
    """Rates of one chip that ``specs/archs`` does not have; those per cycle are of one SM, but for the CTAs that the
    chip starts."""

    clock_ghz: Rate
    issue_per_cycle: Rate
    exp2_per_cycle: Rate
    mma_sync_share: Rate
    smem_bytes_per_cycle: Rate
    l2_bytes_per_cycle: Rate
    ctas_per_cycle: Rate
    clusters: Clusters


class DeviceRates(Strict):
    """What one GPU has other than its arch: memory in TB/s."""

    arch: Name
    hbm: Rate


@lru_cache(maxsize=1)
def _launches() -> Source:
    return parse(files("dsv4.tuner.cost").joinpath("launches.yaml").read_text(encoding="utf-8"), "launches.yaml")


@lru_cache(maxsize=1)
def _chips() -> Source:
    return parse(files("dsv4.tuner.cost").joinpath("chips.yaml").read_text(encoding="utf-8"), "chips.yaml")


def known_ops() -> tuple[str, ...]:
    """The operators whose launches are described."""
    return tuple(_launches().data)


@lru_cache(maxsize=64)
def launch_rules(op: str) -> OperatorRules:
    """The launches of ``op``. Raises SpecError for an operator that is not described."""
    return validate(OperatorRules, _part(_launches(), "op", op))


@lru_cache(maxsize=8)
def chip_rates(arch: str) -> ChipRates:
    """The rates of ``arch``. Raises SpecError for one that has none."""
    return validate(ChipRates, _part(_chips(), "arch", arch))


def device_rates(arch: str, name: str) -> DeviceRates | None:
    """What is known of the GPU called ``name`` beside its arch, or None."""
    every = _part(_chips(), "arch", "devices")
    for part in every.data:
        if part in name and (found := validate(DeviceRates, _part(every, "device", part))).arch == arch:
            return found
    return None


def _part(source: Source, kind: str, name: str) -> Source:
    if name not in source.data:
        raise SpecError(kind, name, one_of(source.data, name), file=source.file)
    inside = ("launches",) if isinstance(source.data[name], list) else ()
    lines = {(*inside, *path[1:]): line for path, line in source.lines.items() if path[:1] == (name,)}
    return Source(source.file, source.data[name], lines)
