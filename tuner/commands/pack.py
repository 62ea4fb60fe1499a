"""`dsv4-tune pack` and `measure`: kernels in one archive, for machines without the compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.console import CheckFailed, UsageError, err
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.errors import Dsv4Error
from dsv4.runtime.tuned import Policy
from dsv4.tuner import exchange
from dsv4.tuner.buckets import spelled
from dsv4.tuner.builders import Prebuilt
from dsv4.tuner.commands import options
from dsv4.tuner.job import Candidate, Job
from dsv4.tuner.packs import write_pack
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.shapes import Bounds
from dsv4.tuner.target import Target, rank


def pack_kernels(
    file: Annotated[Path, typer.Argument(help="The archive to write (.tar.gz).", show_default=False)],
    candidates: Annotated[
        bool, typer.Option("--candidates", help="What `compile` made of one target, to be measured elsewhere.")
    ] = False,
    defaults: Annotated[bool, typer.Option("--defaults", help="The default kernels as well as the winners.")] = False,
    op: select.Op = None,
    arch: select.Arch = None,
    model: options.Model = None,
    dims: options.Dims = [],  # noqa: B006
    variant: options.Variant = [],  # noqa: B006
    pinned: options.Set = [],  # noqa: B006
    shape: options.Shape = [],  # noqa: B006
    bucket: options.Bucket = [],  # noqa: B006
    launch: options.Launch = "graph",
    l2: options.L2 = "cold",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Candidates at most, in plan's order.")] = 1000,
    seed: options.Seed = 0,
) -> None:
    """Pack the winners of this cache with their objects and entries, or with --candidates a job for `measure`.

    Example: dsv4-tune pack job.tar.gz --candidates --op fmha --arch sm_90a --dims D=128
    """
    select.Selection(op, arch, model)
    cache = options.usable_cache()
    if candidates:
        if op is None or arch is None:
            raise UsageError("pack --candidates: found no --op and --arch; valid: those of one target")
        target = options.make_target(op, arch, model, dims, variant, pinned)
        sizes, bounds = options.make_shapes(op, shape, bucket)
        policy = options.make_policy(launch, l2)
        job, artifacts = _job(cache, target, sizes, bounds, policy, limit, seed)
        contents = write_pack(file, cache, artifacts, kind="candidates", job=job)
    else:
        entries = exchange.cached_entries(cache, op, arch)
        for entry in entries:
            if why := exchange.foreign(entry, cache):
                raise CheckFailed(f"{entry.name}: {why}; valid: build it anew, or tune it again")
        winners = _artifacts(cache, op, arch, {entry.key for entry in entries}, defaults)
        if not winners:
            raise UsageError("pack: found no winners in the cache; valid: tune first, --defaults or --candidates")
        contents = write_pack(file, cache, winners, kind="winners", entries=entries)
    size = file.stat().st_size
    err.print(f"{len(contents.files)} files, {len(contents.entries)} entries, {size:,} bytes in {file}", markup=False)


def _artifacts(cache: KernelCache, op: str | None, arch: str | None, keys: set[str], defaults: bool) -> list[Artifact]:
    kinds = [kind for kind in cache.kinds() if op in (None, kind[0]) and arch in (None, kind[1])]
    every = [artifact for kind in kinds for artifact in cache.artifacts(*kind)]
    return [each for each in every if each.manifest.key in keys or (defaults and each.manifest.is_default)]


def _job(
    cache: KernelCache,
    target: Target,
    sizes: tuple[Sizes, ...],
    bounds: Bounds,
    policy: Policy,
    limit: int,
    seed: int,
) -> tuple[Job, list[Artifact]]:
    default, space = target.default(), target.space()
    if (serving := options.untuned_at(target, sizes)).config != default.config:
        raise UsageError(
            f"pack: found shapes that {target.op} has a default kernel of its own for ({spelled(serving.bucket)}); "
            f"valid: others, or 'dsv4-tune sweep'"
        )
    prebuilt = Prebuilt(cache)
    compiled = rank((space.planner.plan(config) for config in prebuilt.only(space) or []), default)
    plans = [each for each in compiled if each.config != default.config][:limit]
    built = prebuilt.build([default, *plans], lambda one: None)
    if built[0].artifact is None or not plans:
        missing = "default" if built[0].artifact is None else "candidate"
        raise UsageError(
            f"pack: found no {missing} of {target.op} on {target.arch} in {cache.root}; valid: dsv4-tune compile first"
        )
    artifacts = [Artifact.read(one.artifact) for one in built if one.artifact]
    listed = [_candidate(artifact, one.plan) for artifact, one in zip(artifacts, built, strict=True)]
    job = Job(
        op=target.op, arch=target.arch, model=target.model, dims=default.dims, variant=default.variant,
        pinned=target.pinned, sizes=sizes, bucket=bounds, policy=policy, default=listed[0],
        candidates=tuple(listed[1:]), seed=seed,
    )  # fmt: skip
    return job, artifacts


def _candidate(artifact: Artifact, plan: KernelPlan) -> Candidate:
    return Candidate(key=artifact.manifest.key, config=plan.config, numeric_class=plan.numeric_class)


def measure_candidates(
    pack: Annotated[Path, typer.Argument(help="A pack of candidates.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The results, for `import`.")] = Path("results.json"),
    limit_s: options.LimitSeconds = 60.0,
) -> None:
    """Measure a pack on this machine's GPU. Without typer the same is: python -m dsv4.tuner.measure_pack

    Example: dsv4-tune measure job.tar.gz -o results.json
    """
    import torch

    from dsv4.runtime.identity import device_identity
    from dsv4.tuner.measure_pack import measure_pack
    from dsv4.tuner.packs import PackRefused, read_contents
    from dsv4.tuner.worker import WorkerError

    try:
        read_contents(pack)
    except PackRefused as error:
        raise UsageError(str(error)) from None
    if not torch.cuda.is_available():
        raise UsageError("measure needs a GPU; this machine has none ('dsv4-tune plan' and 'compile' work without)")
    device = device_identity(torch.cuda.current_device())
    cache = options.usable_cache()
    try:
        results = measure_pack(
            pack, output, cache, device, limit_s=limit_s, say=lambda text: err.print(text, markup=False)
        )
    except (WorkerError, Dsv4Error) as error:
        raise CheckFailed(str(error)) from None
    err.print(f"{len(results.outcomes)} configurations in {output}; next: dsv4-tune import {output}", markup=False)
