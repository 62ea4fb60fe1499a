"""`dsv4-tune plan`: what a sweep would try, in its order, and what it would refuse and why."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from dsv4.generator.console import UsageError, err, out, print_json, print_table
from dsv4.generator.kernel import KernelPlan
from dsv4.tuner import target
from dsv4.tuner.commands import options
from dsv4.tuner.space import Space
from dsv4.tuner.survey import Survey, survey
from dsv4.tuner.tried import spelled


def plan_search(
    op: options.Op,
    arch: options.Arch,
    model: options.Model = None,
    dims: options.Dims = [],  # noqa: B006 — typer's way to say "repeatable, none by default"; never changed
    variant: options.Variant = [],  # noqa: B006
    pinned: options.Set = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", min=1, help="Configurations to list.")] = 20,
    json: options.Json = False,
) -> None:
    """Print what a sweep would try, in its order, and what it would refuse and why. Needs no GPU and no compiler.

    Example: dsv4-tune plan --op fmha --arch sm_100a --dims D=128 --set tile_n=128
    """
    wanted = options.make_target(op, arch, model, dims, variant, pinned)
    arch = wanted.arch
    space, default = wanted.space(), wanted.default()
    found = _survey(space)
    if not found.fitting:
        why = found.reasons[0].text if found.reasons else "no configuration"
        raise UsageError(f"{op} on {arch}: no configuration fits the chip: {why}")
    rows = [
        plan_row(rank, each, default) for rank, each in enumerate(islice(target.ranked(space, default), limit), start=1)
    ]
    if json:
        print_json(
            {
                "op": op,
                "arch": arch,
                "dims": default.dims,
                "variant": default.variant,
                "points": found.points,
                "allowed": found.allowed,
                "fitting": found.fitting,
                "sampled": found.sampled,
                "refused": found.refused,
                "refused_by_reason": [
                    {"reason": each.text, "count": each.count, "exact": each.exact} for each in found.reasons
                ],
                "ranking": target.RANKING,
                "configurations": rows,
            }
        )
        return
    print_table(plan_table(f"{op} on {arch}: {spelled(default.dims)} {spelled(default.variant)}", rows))
    about = "about " if found.sampled else ""
    out.print(
        f"{about}{found.fitting:,} of {found.points:,} configurations fit, {len(rows)} of them listed. "
        f"Ranking: {target.RANKING}.",
        highlight=False,
    )
    if found.sampled:
        out.print(
            f"{found.allowed:,} are allowed by the constraints; {found.sampled:,} drawn from these were planned, and "
            f"the counts marked ≈ are scaled up from them.",
            highlight=False,
        )
    if found.reasons:
        out.print(f"{about}{found.refused:,} are refused (a configuration may have several reasons):", highlight=False)
        for each in found.reasons:
            mark = " " if each.exact else "≈"
            out.print(f"  {mark}{each.count:>9,} × {each.text}", highlight=False, markup=False)


def _survey(space: Space) -> Survey:
    """The survey, with a line of progress on a terminal."""
    if not err.is_terminal:
        return survey(space)
    with err.status("planning configurations") as status:
        return survey(space, progress=lambda done, of: status.update(f"planning configurations: {done}/{of}"))


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
