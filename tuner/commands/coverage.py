"""`dsv4-tune coverage`: which calls of a program are served by a tuned kernel, by a default one, or by none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dsv4.generator.commands import select
from dsv4.generator.console import out, print_json, print_table
from dsv4.tuner.commands import options
from dsv4.tuner.coverage import Covered, Served, cover_calls, known_device, read_calls
from dsv4.tuner.tried import spelled

ORDER: tuple[Served, ...] = ("missing", "default", "tuned", "no kernel is made")


def print_coverage(
    calls: Annotated[Path, typer.Argument(help="Calls, from dsv4.tuner.coverage.write_calls.", show_default=False)],
    arch: options.Arch,
    device: Annotated[
        str | None, typer.Option("--device", help="A device that entries were tuned on (default: this machine's).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print what would serve each kind of call that a program made, what is missing first.

    Example: dsv4-tune coverage step.json --arch sm_90a --device "NVIDIA H100 80GB HBM3"
    """
    select.Selection(None, arch)
    asked = read_calls(calls)
    cache = options.usable_cache()
    import torch

    here = None
    if device is not None:
        here = known_device(cache, arch, device)
    elif torch.cuda.is_available():
        from dsv4.runtime.identity import device_identity

        here = device_identity(torch.cuda.current_device())
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
