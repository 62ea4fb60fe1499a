"""`dsv4-gen emit`: print an emitted source, or keep generated/ up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsv4.generator import generated
from dsv4.generator.commands import select
from dsv4.generator.console import CheckFailed, UsageError, err, print_json
from dsv4.generator.emit import emit
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import plan


def emit_sources(
    op: select.Op = None,
    arch: select.Arch = None,
    model: select.Model = None,
    dims: select.Dims = [],  # noqa: B006 — typer's way to say "repeatable, none by default"; never changed
    variant: select.Variant = [],  # noqa: B006
    config: select.Set = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Fail if generated/ is not what the specs give.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write generated/ anew.")] = False,
    folder: Annotated[Path | None, typer.Option("--into", help="Another folder than generated/.")] = None,
    json: select.Json = False,
) -> None:
    """Print the CuTeDSL source of a kernel, or compare or write generated/.

    Example: dsv4-gen emit --op fmha --arch sm_90a --dims D=128
    """
    selection = select.Selection(op, arch, model, dims, variant, config)
    if check or write:
        if op or arch or model or dims or variant or config:
            raise UsageError("--check and --write are about all defaults: leave out the options that select some")
        plans = sorted(selection.plans(), key=_is_unusual)
        root = folder or Path("generated")
        if write:
            written = generated.write(plans, root)
            err.print(f"{root}: {len(written)} files written")
            return
        stale = generated.check(plans, root)
        if json:
            print_json({"stale": stale})
        if stale:
            raise CheckFailed(f"{root} is stale ('make generated' writes it anew): {'; '.join(stale)}")
        err.print(f"{root}: up to date")
        return
    sources = {source.sha256: source for source in map(emit, selection.plans())}
    if json:
        print_json({"sources": [{"name": s.plan.name, "sha256": s.sha256, "text": s.text} for s in sources.values()]})
        return
    for source in sources.values():
        print(source.text, end="")


def _is_unusual(candidate: KernelPlan) -> bool:
    """Whether a kernel has other sizes or flags than its spec's defaults; the first usual one is shown as text."""
    usual = plan(candidate.op, candidate.arch, model=candidate.model)
    return (candidate.dims, candidate.variant) != (usual.dims, usual.variant)
