"""`dsv4-tune coverage`: which calls of a program or a model are served by a tuned kernel, a default one, or none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dsv4.generator.commands import select
from dsv4.generator.console import UsageError, out, print_json, print_table
from dsv4.tuner.commands import model as of_model
from dsv4.tuner.commands import options
from dsv4.tuner.coverage import ORDER, Covered, cover_calls, device_here, joined, read_calls
from dsv4.tuner.tried import spelled


def print_coverage(
    arch: options.Arch,
    calls: Annotated[
        Path | None, typer.Argument(help="Calls, from dsv4.tuner.coverage.write_calls.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Instead of CALLS: the steps of flash, pro, tiny, or a config.json.")
    ] = None,
    batch: of_model.Batch = [1, 64],  # noqa: B006
    context: of_model.Context = [8192],  # noqa: B006
    drafts: of_model.Drafts = 0,
    chunk: of_model.Chunk = 2048,
    device: Annotated[
        str | None, typer.Option("--device", help="A device that entries were tuned on (default: this machine's).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print what would serve each kind of call that a program made, or that a model's decode and prefill steps make,
    what is missing first.

    Example: dsv4-tune coverage step.json --arch sm_90a --device "NVIDIA H100 80GB HBM3"

    Example: dsv4-tune coverage --model flash --arch sm_90a --batch 64 --context 8192
    """
    arch = options.resolve_arch(arch)
    select.Selection(None, arch)
    if (calls is None) == (model is None):
        found = "neither" if calls is None else "both"
        raise UsageError(f"coverage: found {found} of CALLS and --model; valid: one of them")
    if model is not None:
        steps = of_model.model_steps(model, batch, context, drafts, chunk)
        asked = joined(call for step in steps for call in step.calls)
    else:
        assert calls is not None
        asked = read_calls(calls)
    cache = options.usable_cache()
    here = device_here(cache, arch, device)
    covered = sorted(cover_calls(asked, cache, arch, here), key=lambda each: ORDER.index(each.served))
    counts = Counter(each.served for each in covered)
    if json:
        print_json({"device": here.name if here else None, "counts": counts, "calls": [_row(each) for each in covered]})
        return
    table = Table("served by", "operator", "sizes and flags", "calls")
    for each in covered:
        what = spelled({**each.asked.sizes, **each.asked.variant})
        table.add_row(each.served, each.asked.op, what, str(each.asked.times))
    print_table(table)
    told = ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])
    out.print(f"{len(covered)} kinds of calls on {here.name if here else 'no device'}: {told}", highlight=False)


def _row(each: Covered) -> dict[str, object]:
    return {**each.asked.model_dump(), "served": each.served, "key": each.key}
