"""`dsv4-tune compile`: compile candidates on any machine, in parallel."""

from __future__ import annotations

import os
from itertools import islice
from typing import Annotated

import typer

from dsv4.generator.console import CheckFailed, err, print_json
from dsv4.tuner.builders import Built, Compiler
from dsv4.tuner.commands import options
from dsv4.tuner.target import ranked
from dsv4.tuner.tried import spelled


def compile_candidates(
    op: options.Op,
    arch: options.Arch,
    model: options.Model = None,
    dims: options.Dims = [],  # noqa: B006
    variant: options.Variant = [],  # noqa: B006
    pinned: options.Set = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", min=1, help="Configurations to compile, in plan's order.")] = 20,
    jobs: options.Jobs = 0,
    json: options.Json = False,
) -> None:
    """Compile the first configurations of `plan` into the cache, for `pack` or for `sweep --prebuilt` elsewhere.

    Example: dsv4-tune compile --op fmha --arch sm_90a --dims D=128 --limit 40
    """
    wanted = options.make_target(op, arch, model, dims, variant, pinned)
    arch = wanted.arch
    cache = options.usable_cache()
    plans = list(islice(ranked(wanted.space(), wanted.default()), limit))
    done = 0

    def progress(one: Built) -> None:
        nonlocal done
        done += 1
        err.print(f"{done}/{len(plans)} {spelled(one.plan.config)}: {one.error or 'compiled'}", markup=False)

    built = Compiler(cache, jobs or os.cpu_count()).build(plans, progress)
    rows = [{"config": b.plan.config, "key": b.artifact.name if b.artifact else None, "error": b.error} for b in built]
    if json:
        print_json({"op": op, "arch": arch, "cache": str(cache.root), "kernels": rows})
    failed = sum(1 for one in built if one.error)
    err.print(f"{len(built) - failed} of {len(built)} configurations are in {cache.root}", markup=False)
    if failed == len(built):
        raise CheckFailed(f"no configuration of {op} on {arch} compiles: {built[0].error}")
