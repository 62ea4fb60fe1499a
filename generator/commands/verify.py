"""`dsv4-gen verify`: hold every built kernel to its float64 reference, or check what can be checked without a GPU."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dsv4.generator.commands import select
from dsv4.generator.commands.listing import pairs
from dsv4.generator.console import CheckFailed, UsageError, print_json, print_table, progress_bar
from dsv4.generator.verify.climb import DEVICES, Report, verify_artifacts


def verify_kernels(
    op: select.Op = None,
    arch: select.Arch = None,
    device: Annotated[str, typer.Option("--device", help=f"One of {', '.join(DEVICES)}.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the inputs.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds a kernel may take before it is killed.")] = 120.0,
    json: select.Json = False,
) -> None:
    """Verify the kernels in the cache and record the rung that each has climbed.

    On a GPU each kernel runs in a process of its own over adversarial inputs and is compared with float64. On a CPU
    the artifact, its resources and the static rules over its PTX are checked.

    Example: dsv4-gen verify --op rms_norm --device cpu --json
    """
    if device not in DEVICES:
        raise UsageError(f"--device: found '{device}'; valid: {', '.join(DEVICES)}")
    cache, chosen = select.cached_artifacts(op, arch)
    if not chosen:
        raise UsageError(f"nothing to verify in {cache.root}: build something first ('dsv4-gen build')")
    reports: list[Report] = []
    with progress_bar("verify", len(chosen)) as advance:
        for report in verify_artifacts(chosen, device, seed=seed, timeout=timeout):
            reports.append(report)
            advance(report.manifest.name)
    if json:
        print_json({"kernels": [row(report) for report in reports]})
    else:
        print_table(verify_table(reports))
    bad = [report for report in reports if not report.ok]
    if bad:
        first = bad[0]
        raise CheckFailed(f"{len(bad)} of {len(reports)} kernels failed: {first.manifest.name}: {first.findings[0]}")


def row(report: Report) -> dict[str, Any]:
    """One kernel as `verify --json` prints it; the numbers are null where nothing was executed."""
    manifest = report.manifest
    return {
        "op": manifest.op,
        "arch": manifest.arch,
        "dims": manifest.dims,
        "variant": manifest.variant,
        "config": manifest.config,
        "device": report.device,
        "ok": report.ok,
        "cases": report.cases,
        "cosine": report.cosine,
        "rel_l2": report.rel_l2,
        "max_abs": report.max_abs,
        "findings": list(report.findings),
    }


def verify_table(reports: list[Report]) -> Table:
    table = Table(
        "kernel", "arch", "variant", "device", "cases", "cosine", "max abs error", "findings", box=box.SIMPLE_HEAD
    )
    for report in reports:
        manifest = report.manifest
        table.add_row(
            f"{manifest.op} {pairs(manifest.dims)}",
            manifest.arch,
            pairs(manifest.variant),
            report.device,
            str(report.cases or "-"),
            "-" if report.cosine is None else f"{report.cosine:.7f}",
            "-" if report.max_abs is None else f"{report.max_abs:.2e}",
            "[green]none[/green]" if report.ok else f"[red]{'; '.join(report.findings)}[/red]",
        )
    return table
