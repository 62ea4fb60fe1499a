"""`dsv4-gen list`: what can be built, and what is in the cache."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from dsv4.generator.commands import select
from dsv4.generator.console import print_json, print_table
from dsv4.generator.spec import list_ops, load_op
from dsv4.runtime.artifact import Manifest


def list_kernels(
    op: select.Op = None, arch: select.Arch = None, model: select.Model = None, json: select.Json = False
) -> None:
    """List the default kernels of each operator and which of them are built.

    Example: dsv4-gen list --op fmha --arch sm_100a --json
    """
    selection = select.Selection(op, arch, model)
    built = {_identity(artifact.manifest) for artifact in select.cached_artifacts(op, arch)[1]}
    kernels: list[dict[str, Any]] = []
    for plan in selection.plans():
        known = (plan.op, plan.arch, _frozen(plan.dims), _frozen(plan.variant), _frozen(plan.config))
        kernels.append({**plan.identity, "model": model, "name": plan.name, "built": known in built})
    planned = [name for name in list_ops() if load_op(name).status != "ready" and op in (None, name)]
    if json:
        print_json({"kernels": kernels, "planned": planned})
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"{len(kernels)} default kernels")
    for heading in ("kernel", "arch", "variant", "built"):
        table.add_column(heading, no_wrap=True)
    table.add_column("config", no_wrap=True, overflow="ellipsis")
    for each in kernels:
        kernel = f"{each['op']} {pairs(each['dims'])}"
        table.add_row(
            kernel, each["arch"], pairs(each["variant"]), "yes" if each["built"] else "no", pairs(each["config"])
        )
    print_table(table)
    if planned:
        print(f"Specified, without a template so far: {', '.join(planned)}")


def pairs(values: dict[str, Any]) -> str:
    """``{"tile_m": 128, "causal": True}`` as ``tile_m=128 causal``; flags that are off are left out."""
    shown = (name if value is True else f"{name}={value}" for name, value in values.items() if value is not False)
    return " ".join(shown) or "-"


def _frozen(values: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))


def _identity(manifest: Manifest) -> tuple[Any, ...]:
    return (
        manifest.op,
        manifest.arch,
        _frozen(manifest.dims),
        _frozen(manifest.variant),
        _frozen(manifest.config),
    )
