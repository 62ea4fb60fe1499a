"""`dsv4-gen verify`: hold every built kernel to its float64 reference, or check what can be checked without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from dsv4.emulator.errors import ArgumentRefused
from dsv4.emulator.report import text as blocks_of
from dsv4.emulator.sources import Sources
from dsv4.generator.commands import select
from dsv4.generator.commands.listing import pairs
from dsv4.generator.console import CheckFailed, UsageError, out, print_json, print_table, progress_bar
from dsv4.generator.verify.climb import DEVICES, Emulation, Report, verify_artifacts
from dsv4.generator.verify.emulator import SCHEDULES, CaseFinding


def verify_kernels(
    op: select.Op = None,
    arch: select.Arch = None,
    device: Annotated[str, typer.Option("--device", help=f"One of {', '.join(DEVICES)}.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the inputs.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds a kernel may take before it is killed.")] = 120.0,
    kernel: Annotated[str | None, typer.Option("--kernel", help="One kernel: its key, or how that begins.")] = None,
    schedules: Annotated[
        int, typer.Option("--schedules", min=1, help="Emulator: schedules that the two thorough cases run under.")
    ] = SCHEDULES,
    case: Annotated[int | None, typer.Option("--case", min=0, help="Emulator: only the case with this number.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="Emulator: only under the one of this name.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option("--trace", help="Emulator: draw the run of --case to this file, for Perfetto.")
    ] = None,
    json: select.Json = False,
) -> None:
    """Verify the kernels in the cache and record the rung that each has climbed.

    On a GPU each kernel runs in a process of its own over adversarial inputs and is compared with float64. On a CPU
    the artifact, its resources and the static rules over its PTX are checked. On the emulator the same inputs run on
    this machine, whatever chip the kernel is for, and races, hangs and reads of unset memory are found as well: every
    case under one schedule, which change from case to case, and two cases under all. With --case or --schedule a part
    is run and no rung is recorded.

    Example: dsv4-gen verify --op rms_norm --device emulator --json
    """
    if device not in DEVICES:
        raise UsageError(f"--device: found '{device}'; valid: {', '.join(DEVICES)}")
    emulation = Emulation(schedules, case, schedule, timeline)
    if (emulation.is_part or timeline) and device != "emulator":
        raise UsageError("--case, --schedule, --trace: valid with --device emulator only")
    if timeline and (case is None or schedule is None):
        raise UsageError("--trace: draws one run; valid: together with --case and --schedule")
    cache, chosen = select.cached_artifacts(op, arch)
    if kernel is not None:
        chosen = [artifact for artifact in chosen if artifact.manifest.key.startswith(kernel)]
        if not chosen:
            raise UsageError(
                f"--kernel: found '{kernel}'; valid: the key of a kernel in {cache.root}, or how it begins"
            )
    if not chosen:
        raise UsageError(f"nothing to verify in {cache.root}: build something first ('dsv4-gen build')")
    reports: list[Report] = []
    with progress_bar("verify", len(chosen)) as advance:
        try:
            for report in verify_artifacts(chosen, device, seed=seed, timeout=timeout, emulation=emulation):
                reports.append(report)
                advance(report.manifest.name)
        except (ArgumentRefused, ValueError) as refused:  # a schedule or a case that there is not
            raise UsageError(f"--{refused}") from None
    if json:
        print_json({"kernels": [row(report) for report in reports]})
    else:
        print_table(verify_table(reports))
        for report in reports:
            for finding in report.detail:
                out.print(finding_text(report, finding), "", sep="\n", highlight=False, markup=False, soft_wrap=True)
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
        "runs": report.runs,
        "seconds": round(report.seconds, 3),
        "detail": [finding.as_json() for finding in report.detail],
    }


def finding_text(report: Report, found: CaseFinding) -> str:
    """A finding of the emulator as a block: what, in which kernel, configuration and case, and how to see it again."""
    manifest = report.manifest
    facts = [manifest.arch, *(pairs(each) for each in (manifest.dims, manifest.variant, manifest.config))]
    configuration = (
        f"{manifest.op} {' '.join(fact for fact in facts if fact != '-')}; case {found.case}: {found.case_name}"
    )
    more = f"\n  {found.repeats} other runs show the same" if found.repeats else ""
    if not found.findings:
        return f"{found.message}\n  {configuration}\n  again  {found.command}{more}"
    sources = Sources([] if report.folder is None else [report.folder])
    named = [replace(finding, kernel=manifest.name) for finding in found.findings]  # the PTX's name is half a page
    return blocks_of(named, sources=sources, configuration=configuration, command=found.command) + more


def findings_cell(report: Report) -> str:
    """The findings in the table; those of the emulator are printed in full below it."""
    return escape(f"{len(report.detail)}, see below" if report.detail else "; ".join(report.findings))


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
            "[green]none[/green]" if report.ok else f"[red]{findings_cell(report)}[/red]",
        )
    return table
