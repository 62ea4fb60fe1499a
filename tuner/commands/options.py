"""Options that several commands have, and the target that they describe."""

from __future__ import annotations

from typing import Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.commands.select import Dims as Dims
from dsv4.generator.commands.select import Json as Json
from dsv4.generator.commands.select import Model as Model
from dsv4.generator.commands.select import Variant as Variant
from dsv4.generator.console import UsageError, parse_assignments, parse_sizes
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import shapes
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.target import Target

Op = Annotated[str, typer.Option("--op", help="The operator.")]
Arch = Annotated[str, typer.Option("--arch", help="sm_90a or sm_100a.")]
Set = Annotated[list[str], typer.Option("--set", help="Hold a tunable at NAME=VALUE; repeatable.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Compile processes (0: the number of cores).")]
Shape = Annotated[list[str], typer.Option("--shape", help="Measure at NAME=SIZE,…; repeatable.")]
Bucket = Annotated[list[str], typer.Option("--bucket", help="The winner serves NAME=LOW:HIGH only.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the search and of the inputs.")]
Storage = Annotated[
    str | None,
    typer.Option("--storage", help="Where studies are kept: a journal's file, sqlite:///FILE, postgresql://…"),
]


def make_target(
    op: str, arch: str, model: str | None, dims: list[str], variant: list[str], pinned: list[str]
) -> Target:
    """The options of every command as a target. Raises UsageError."""
    select.Selection(op, arch, model)
    sizes = parse_sizes("--dims", dims)
    return Target(op, arch, model, sizes, parse_assignments("--variant", variant), parse_assignments("--set", pinned))


def make_shapes(op: str, shape: list[str], bucket: list[str]) -> tuple[tuple[Sizes, ...], shapes.Bounds]:
    """What to measure, and what the winner is to serve. Raises UsageError where a shape lies outside."""
    sizes, bounds = shapes.shapes(op, shape), shapes.bucket(bucket)
    for each in sizes:
        if problem := shapes.outside(bounds, each):
            raise UsageError(f"--bucket: {problem}; measure (--shape) what the winner is to serve")
    return sizes, bounds


def usable_cache() -> KernelCache:
    """The kernel cache. Raises UsageError where it cannot be trusted."""
    cache = KernelCache()
    if cache.refused:
        raise UsageError(f"kernel cache refused: {cache.refused}")
    return cache
