"""`dsv4-gen build`: compile kernels into the cache, in parallel, on any CPU."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dsv4.generator.build import BuildResult, build
from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.commands import select
from dsv4.generator.commands.listing import pairs
from dsv4.generator.console import CheckFailed, UsageError, print_json, print_table, progress_bar
from dsv4.runtime.cache import KernelCache

Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Compile processes (default: the number of cores).")]


def build_kernels(
    op: select.Op = None,
    arch: select.Arch = None,
    model: select.Model = None,
    dims: select.Dims = [],  # noqa: B006 — typer's way to say "repeatable, none by default"; never changed
    variant: select.Variant = [],  # noqa: B006
    config: select.Set = [],  # noqa: B006
    jobs: Jobs = 0,
    force: Annotated[bool, typer.Option("--force", help="Compile even what is in the cache.")] = False,
    json: select.Json = False,
) -> None:
    """Compile kernels into the cache (defaults, or one that you describe).

    Example: dsv4-gen build --op fmha --arch sm_100a --dims D=128 --set tile_n=64
    """
    if jobs < 0:
        raise UsageError(f"--jobs: found {jobs}; valid: 1 or more, or 0 for the number of cores")
    plans = select.Selection(op, arch, model, dims, variant, config).plans()
    with progress_bar("build", len(plans)) as advance:
        results = build(
            plans,
            cache_root=KernelCache().root,
            jobs=jobs or os.cpu_count() or 1,
            force=force,
            progress=lambda result: advance(result.plan.name),
        )
    if json:
        print_json({"kernels": [row(result) for result in results]})
    else:
        print_table(build_table(results))
    failed = [result for result in results if result.error]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(results)} kernels failed: {failed[0].plan.name}: {failed[0].error}")


def row(result: BuildResult) -> dict[str, Any]:
    """One kernel as `build --json` prints it."""
    plan, used, predicted = result.plan, result.used, result.plan.predicted
    return {
        "op": plan.op,
        "arch": plan.arch,
        "model": plan.model,
        "dims": plan.dims,
        "variant": plan.variant,
        "config": plan.config,
        "registers": used.registers if used else None,
        "spill_bytes": used.spill_bytes if used else None,
        "smem_bytes": used.smem_bytes if used else None,
        "smem_bytes_predicted": predicted.smem_bytes,
        "tmem_columns": used.tmem_columns if used else None,
        "tmem_columns_predicted": predicted.tmem_columns,
        "seconds": round(result.seconds, 3),
        "cached": result.cached,
        "rungs": rungs(result),
        "artifact": str(result.artifact) if result.artifact else None,
        "error": result.error,
    }


def rungs(result: BuildResult) -> list[str]:
    return list(read_evidence(result.artifact).rungs()) if result.artifact else []


def build_table(results: list[BuildResult]) -> Table:
    """Kernel, arch, registers, spills, shared memory, TMEM columns, compile seconds, rungs of truth climbed."""
    table = Table(title=f"{len(results)} kernels", box=box.SIMPLE_HEAD)
    for heading in ("kernel", "arch", "variant"):
        table.add_column(heading, no_wrap=True)
    for heading in ("registers", "spills B", "smem B", "TMEM cols", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("rungs climbed")
    for result in results:
        plan, used = result.plan, result.used
        start = (f"{plan.op} {pairs(plan.dims)}", plan.arch, pairs(plan.variant))
        if used is None or result.error:
            table.add_row(*start, "", "", "", "", f"{result.seconds:.1f}", f"[red]{result.error}[/red]")
            continue
        table.add_row(
            *start,
            str(used.registers),
            str(used.spill_bytes),
            f"{used.smem_bytes:,}",
            str(used.tmem_columns),
            "cached" if result.cached else f"{result.seconds:.1f}",
            " ".join(rungs(result)),
        )
    return table
