"""Options that several commands have, and the target that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, get_args

import typer

from dsv4.generator.commands import select
from dsv4.generator.commands.select import Dims as Dims
from dsv4.generator.commands.select import Json as Json
from dsv4.generator.commands.select import Model as Model
from dsv4.generator.commands.select import Variant as Variant
from dsv4.generator.console import UsageError, parse_assignments, parse_sizes
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import list_archs
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Policy
from dsv4.tuner import buckets, shapes
from dsv4.tuner.buckets import spelled
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.target import Target, untuned

Op = Annotated[str, typer.Option("--op", help="The operator.")]
Arch = Annotated[str, typer.Option("--arch", help="sm_90a, sm_100a, or auto: this machine's GPU.")]
Set = Annotated[list[str], typer.Option("--set", help="Hold a tunable at NAME=VALUE; repeatable.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Compile processes (0: the number of cores).")]
Shape = Annotated[list[str], typer.Option("--shape", help="Measure at NAME=SIZE,…; repeatable.")]
Bucket = Annotated[list[str], typer.Option("--bucket", help="The winner serves NAME=LOW:HIGH,… only.")]
Buckets = Annotated[
    list[str],
    typer.Option("--bucket", help="A winner serves NAME=LOW:HIGH,… only; repeatable: one each; auto: one a shape."),
]
Launch = Annotated[str, typer.Option("--launch", help="Time calls by graph (replayed) or eager (one by one).")]
L2 = Annotated[str, typer.Option("--l2", help="Time calls with a cold L2 cache, or a warm one.")]
Patience = Annotated[
    int | None, typer.Option("--patience", help="End a study after so many configurations without a better one.")
]
Loss = Annotated[float | None, typer.Option("--loss", min=0.0, help="Few kernels: percent over the best of a bucket.")]
LimitSeconds = Annotated[float, typer.Option("--limit-s", min=1.0, help="Seconds a kernel may be silent.")]
Gpus = Annotated[str, typer.Option("--gpus", help="GPUs of this machine that measure together: a number, or all.")]
Prebuilt = Annotated[bool, typer.Option("--prebuilt", help="Try only what the cache holds; compile nothing.")]
Measure = Annotated[
    str, typer.Option("--measure", help="gpu, or fake: made-up times, to try the tuner; nothing is kept.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the search and of the inputs.")]
Storage = Annotated[
    str | None,
    typer.Option("--storage", help="Where studies are kept: a journal's file, sqlite:///FILE, postgresql://…"),
]

AUTO = "auto"


def make_target(
    op: str, arch: str, model: str | None, dims: list[str], variant: list[str], pinned: list[str]
) -> Target:
    """The options of every command as a target. Raises UsageError."""
    arch = resolve_arch(arch)
    select.Selection(op, arch, model)
    sizes = parse_sizes("--dims", dims)
    return Target(op, arch, model, sizes, parse_assignments("--variant", variant), parse_assignments("--set", pinned))


def resolve_arch(arch: str) -> str:
    """``auto`` as the arch of this machine's GPU, everything else as it is. Raises UsageError where there is none."""
    if arch != AUTO:
        return arch
    import torch

    from dsv4.runtime.dispatch import ARCH_OF_CAPABILITY

    valid = ", ".join(list_archs())
    if not torch.cuda.is_available():
        raise UsageError(f"--arch: found '{AUTO}' on a machine without a GPU; valid: {valid}")
    found = ARCH_OF_CAPABILITY.get(torch.cuda.get_device_capability())
    if found is None:
        raise UsageError(f"--arch: found '{AUTO}' on a {torch.cuda.get_device_name()}; valid: on {valid}")
    return found


def untuned_at(target: Target, sizes: Sequence[Sizes]) -> KernelPlan:
    """What serves all of ``sizes`` untuned. Raises UsageError where it is not one kernel."""
    planner = target.planner()
    plans = {canonical_json(plan.config): plan for plan in (untuned(planner, each) for each in sizes)}
    if len(plans) > 1:
        told = ", ".join(spelled(each.bucket) for each in planner.bucketed())
        raise UsageError(
            f"--shape: found shapes that {target.op} has several default kernels for (its own for {told}); "
            f"valid: shapes of one, or 'dsv4-tune sweep' with a --bucket for each"
        )
    return next(iter(plans.values()), planner.plan())


def make_policy(launch: str, l2: str) -> Policy:
    """How calls are timed. Raises UsageError."""
    for option, found, field in (("--launch", launch, "launch"), ("--l2", l2, "l2")):
        valid = get_args(Policy.model_fields[field].annotation)
        if found not in valid:
            raise UsageError(f"{option}: found '{found}'; valid: {', '.join(valid)}")
    return Policy.model_validate({"launch": launch, "l2": l2})


def make_buckets(op: str, shape: list[str], bucket: list[str]) -> tuple[tuple[Sizes, ...], tuple[shapes.Bounds, ...]]:
    """What to measure, and the buckets that are to have a winner each. Raises UsageError where a shape is in none."""
    sizes = shapes.shapes(op, shape)
    if bucket == [buckets.AUTOMATIC]:
        return sizes, tuple(buckets.automatic(sizes, buckets.bounded_names(op, sizes)))
    found = buckets.parse(bucket) or [buckets.EVERYTHING]
    buckets.grouped(found, sizes)
    return sizes, tuple(found)


def make_shapes(op: str, shape: list[str], bucket: list[str]) -> tuple[tuple[Sizes, ...], shapes.Bounds]:
    """The same where there can be one winner only."""
    sizes, found = make_buckets(op, shape, bucket)
    if len(found) > 1:
        raise UsageError(f"--bucket: found {len(found)} buckets; valid: one here, or 'dsv4-tune sweep' for several")
    return sizes, found[0]


def usable_cache() -> KernelCache:
    """The kernel cache. Raises UsageError where it cannot be trusted."""
    cache = KernelCache()
    if cache.refused:
        raise UsageError(f"kernel cache refused: {cache.refused}")
    return cache
