"""`dsv4-tune`: find the fastest configuration of a kernel on the GPU that will run it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table

from dsv4.generator.cli import run
from dsv4.generator.commands import select
from dsv4.generator.console import (
    CheckFailed,
    UsageError,
    err,
    out,
    parse_assignments,
    parse_sizes,
    print_json,
    print_table,
)
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import shapes, target
from dsv4.tuner.target import Target, spelled

EPILOG = """Examples:

  dsv4-tune plan --op fmha --arch sm_90a --dims D=128 --limit 10     what would be tried, what is refused and why

  dsv4-tune sweep --op rms_norm --arch sm_90a --budget 10m           tune on this machine's GPU

  dsv4-tune sweep --op fmha --arch sm_90a --budget 40 --shape B=1,Sq=1,Sk=8192 --bucket Sq=1:16

  dsv4-tune compile --op fmha --arch sm_90a --limit 40               compile here, then on a GPU machine
  dsv4-tune sweep --op fmha --arch sm_90a --budget 40 --prebuilt     that has this cache and no compiler
"""

app = typer.Typer(
    name="dsv4-tune",
    help="Find the fastest configuration of a kernel.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Op = Annotated[str, typer.Option("--op", help="The operator.")]
Arch = Annotated[str, typer.Option("--arch", help="sm_90a or sm_100a.")]
Set = Annotated[list[str], typer.Option("--set", help="Hold a tunable at NAME=VALUE; repeatable.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Compile processes (0: the number of cores).")]


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Find the fastest configuration of a kernel."""


def make_target(
    op: str, arch: str, model: str | None, dims: list[str], variant: list[str], pinned: list[str]
) -> Target:
    """The options of every command as a target. Raises UsageError."""
    select.Selection(op, arch, model)
    sizes = parse_sizes("--dims", dims)
    return Target(op, arch, model, sizes, parse_assignments("--variant", variant), parse_assignments("--set", pinned))


@app.command("plan")
def plan_search(
    op: Op,
    arch: Arch,
    model: select.Model = None,
    dims: select.Dims = [],  # noqa: B006 — typer's way to say "repeatable, none by default"; never changed
    variant: select.Variant = [],  # noqa: B006
    pinned: Set = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", min=1, help="Configurations to list.")] = 20,
    json: select.Json = False,
) -> None:
    """Print what a sweep would try, in its order, and what it would refuse and why. Needs no GPU and no compiler.

    Example: dsv4-tune plan --op fmha --arch sm_100a --dims D=128 --set tile_n=128
    """
    wanted = make_target(op, arch, model, dims, variant, pinned)
    default = wanted.default()
    plans, refusals = wanted.configurations()
    rows = [plan_row(rank, each, default) for rank, each in enumerate(plans[:limit], start=1)]
    if json:
        print_json(
            {
                "op": op,
                "arch": arch,
                "dims": default.dims,
                "variant": default.variant,
                "fitting": len(plans),
                "refused": refusals.count,
                "refused_by_reason": [{"reason": why, "count": count} for why, count in refusals.by_reason.items()],
                "ranking": target.RANKING,
                "configurations": rows,
            }
        )
        return
    print_table(plan_table(f"{op} on {arch}: {spelled(default.dims)} {spelled(default.variant)}", rows))
    out.print(
        f"{len(plans)} configurations fit, {len(rows)} of them listed. Ranking: {target.RANKING}.", highlight=False
    )
    if refusals.count:
        out.print(f"{refusals.count} are refused (a configuration may have several reasons):", highlight=False)
        for why, count in refusals.by_reason.items():
            out.print(f"  {count:>6} × {why}", highlight=False, markup=False)


def plan_row(rank: int, each: KernelPlan, default: KernelPlan) -> dict[str, Any]:
    """One configuration as `plan --json` prints it."""
    return {
        "rank": rank,
        "config": each.config,
        "is_default": each.is_default,
        "changes": target.changes(each, default),
        "threads": each.predicted.threads,
        "smem_bytes": each.predicted.smem_bytes,
        "tmem_columns": each.predicted.tmem_columns,
        "resident_ctas": target.resident_ctas(each),
    }


def plan_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("rank", "differs from the default in", "threads", "smem B", "TMEM columns", "CTAs an SM", title=title)
    for row in rows:
        changed = "the default" if row["is_default"] else spelled(row["changes"])
        figures = (row["threads"], f"{row['smem_bytes']:,}", row["tmem_columns"], row["resident_ctas"])
        table.add_row(str(row["rank"]), changed, *map(str, figures))
    return table


@app.command("compile")
def compile_candidates(
    op: Op,
    arch: Arch,
    model: select.Model = None,
    dims: select.Dims = [],  # noqa: B006
    variant: select.Variant = [],  # noqa: B006
    pinned: Set = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", min=1, help="Configurations to compile, in plan's order.")] = 20,
    jobs: Jobs = 0,
    json: select.Json = False,
) -> None:
    """Compile the first configurations of `plan` into the cache, for `sweep --prebuilt` on another machine.

    Example: dsv4-tune compile --op fmha --arch sm_90a --dims D=128 --limit 40
    """
    from dsv4.tuner.builders import Built, Compiler

    wanted = make_target(op, arch, model, dims, variant, pinned)
    plans, _ = wanted.configurations()
    plans = plans[:limit]
    cache = KernelCache()
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


@app.command("sweep")
def sweep_configurations(
    op: Op,
    arch: Arch,
    budget: Annotated[str, typer.Option("--budget", help="Configurations (40) or time (90s, 10m, 1h).")] = "10m",
    model: select.Model = None,
    dims: select.Dims = [],  # noqa: B006
    variant: select.Variant = [],  # noqa: B006
    pinned: Set = [],  # noqa: B006
    shape: Annotated[list[str], typer.Option("--shape", help="Measure at NAME=SIZE,…; repeatable.")] = [],  # noqa: B006
    bucket: Annotated[list[str], typer.Option("--bucket", help="The winner serves NAME=LOW:HIGH only.")] = [],  # noqa: B006
    batch: Annotated[int, typer.Option("--batch", min=1, help="Configurations compiled together.")] = 8,
    jobs: Jobs = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search and of the inputs.")] = 0,
    limit_s: Annotated[float, typer.Option("--limit-s", min=1.0, help="Seconds a kernel may be silent.")] = 60.0,
    prebuilt: Annotated[
        bool, typer.Option("--prebuilt", help="Try only what the cache holds; compile nothing.")
    ] = False,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Run each configuration in the emulator first; a finding keeps it out.")
    ] = False,
    json: select.Json = False,
) -> None:
    """Tune on this machine's GPU: compile, check against float64, measure, keep the winner in the cache.

    A kernel that hangs or faults costs only itself. Ctrl-C loses nothing: the same command goes on from there.

    Example: dsv4-tune sweep --op rms_norm --arch sm_90a --budget 10m
    """
    from dsv4.tuner.gpu import require_gpu
    from dsv4.tuner.sweep import Budget

    wanted = make_target(op, arch, model, dims, variant, pinned)
    parsed, sizes, bounds = Budget.parse(budget), shapes.shapes(op, shape), shapes.bucket(bucket)
    for each in sizes:
        if problem := shapes.outside(bounds, each):
            raise UsageError(f"--bucket: {problem}; measure (--shape) what the winner is to serve")
    device = require_gpu(wanted.default())
    try:
        from dsv4.tuner import builders, sweep, worker
    except ModuleNotFoundError as missing:
        raise UsageError(f"sweep needs {missing.name}: pip install 'dsv4-kernels[tune]'") from None
    cache = KernelCache()
    builder: builders.Builder = builders.Compiler(cache, jobs or os.cpu_count())
    if prebuilt:
        builder = builders.Prebuilt(cache)
    settings = sweep.Settings(device, sizes, parsed, batch=batch, seed=seed, limit_s=limit_s, bucket=bounds)

    def say(text: str) -> None:
        err.print(text, markup=False)

    check_first: sweep.Preflight | None = None
    if preflight:
        from dsv4.generator.verify.emulator import preflight as look

        check_first = partial(look, seed=seed)
    try:
        result = sweep.sweep(wanted, settings, cache=cache, builder=builder, say=say, preflight=check_first)
    except worker.WorkerError as error:
        raise CheckFailed(str(error)) from None
    if json:
        print_json({"op": op, "arch": arch, "device": device, "shapes": list(sizes), **asdict(result)})
    else:
        verb = "chosen" if result.chosen else "not chosen"
        out.print(f"{result.tried} configurations tried on {device}, {len(result.failed)} failed", highlight=False)
        out.print(f"default {result.default['us']:.2f} µs: {spelled(result.default['config'])}", highlight=False)
        out.print(f"best    {result.best['us']:.2f} µs: {spelled(result.best['config'])}", highlight=False)
        out.print(f"{verb}: {result.why}", highlight=False, markup=False)
    if result.interrupted:
        raise KeyboardInterrupt


def main() -> None:
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # accepted anywhere on the line
        arguments = ["--debug", *(each for each in arguments if each != "--debug")]
    sys.exit(run(app, arguments))
