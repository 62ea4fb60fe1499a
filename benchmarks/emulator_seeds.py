"""Does the emulator stay silent about right kernels? ``python -m benchmarks.emulator_seeds --write`` for the file.

Every default kernel of both chips runs its small cases under twenty seeded schedules, in each of which every choice is
drawn, and under the fixed ones. Any finding, and any wrong value, is a false alarm or a mistake of ours: none is
expected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.check_file import check_path, head, write_check
from dsv4.emulator.client import Client
from dsv4.emulator.policy import FIXED, mixed
from dsv4.generator.build import build
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import default_plans, list_archs, list_ops, load_op
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.mutation_run import small_cases, wide_cases
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact, KernelCache

SEEDS = 20


def default_kernels() -> list[KernelPlan]:
    """Every default kernel of every operator that is ready, for both chips."""
    ready = [op for op in list_ops() if load_op(op).status == "ready"]
    return [each for op in ready for arch in list_archs() for each in default_plans(op, arch)]


def run_kernel(artifact: Artifact, seeds: int, client: Client) -> dict[str, Any]:
    """One kernel under the fixed schedules and ``seeds`` drawn ones; a wide case runs under the first two of each."""
    manifest = artifact.manifest
    kernel = EmulatedKernel(artifact, client=client, threads=1)
    drawn = [mixed(seed) for seed in range(seeds)]
    runs = [(case, policy.name) for policy in (*FIXED, *drawn) for case in small_cases(manifest)]
    runs += [(case, policy.name) for policy in (*FIXED[:2], *drawn[:2]) for case in wide_cases(manifest)]
    findings, worst, instructions, began = [], 1.0, 0, time.monotonic()
    for case, name in runs:
        kernel.schedule = name
        verdict = run_case(kernel, manifest.contract, case)
        assert kernel.report is not None
        instructions += kernel.report.stats["instructions"]
        said = [finding.line() for finding in kernel.report.findings]
        findings += [f"{case.name}, {name}: {each}" for each in (*said, *verdict.findings)]
        worst = min(worst, verdict.cosine)
    return {
        "name": manifest.name, "op": manifest.op, "arch": manifest.arch, "dims": manifest.dims,
        "variant": manifest.variant, "ptx_sha256": manifest.ptx_sha256, "runs": len(runs), "findings": findings,
        "worst_cosine": worst, "warp_instructions": instructions, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def run_all(artifacts: Sequence[Artifact], seeds: int, jobs: int) -> Iterator[dict[str, Any]]:
    """All kernels, ``jobs`` at a time, each with an emulating process of its own."""

    def one(artifact: Artifact) -> dict[str, Any]:
        with Client() as client:
            return run_kernel(artifact, seeds, client)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, artifacts)


def main(
    write: Annotated[bool, typer.Option("--write", help="Write the dated result file.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeded schedules.")] = SEEDS,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Kernels at a time.")] = len(os.sched_getaffinity(0)),
    only: Annotated[str, typer.Option("--only", help="Kernels whose name contains this.")] = "",
    cache: Annotated[Path | None, typer.Option("--cache", help="Build in this kernel cache.")] = None,
) -> None:
    """Run the default kernels, print what was found, and with --write keep it under benchmarks/results/checks."""
    console = Console(width=150)
    plans = [each for each in default_kernels() if only in each.name]
    artifacts = []
    for built in build(plans, cache_root=cache or KernelCache().root, jobs=min(jobs, 2)):
        if built.artifact is None:
            raise RuntimeError(f"{built.plan.name}: {built.error}")
        artifacts.append(Artifact.read(built.artifact))
    rows = []
    for row in run_all(artifacts, seeds, jobs):
        rows.append(row)
        console.print(f"{row['name']}: {row['runs']} runs, {len(row['findings'])} findings, {row['seconds']} s")
        for finding in row["findings"][:3]:
            console.print(f"  {finding}", markup=False)
    found = sum(len(row["findings"]) for row in rows)
    runs = sum(row["runs"] for row in rows)
    console.print(f"{len(rows)} kernels, {runs} runs, {found} findings")
    if write:
        now = datetime.now(UTC)
        path = check_path(now, "emulator_seeds")
        names = [policy.name for policy in FIXED]
        total = {"kernels": len(rows), "runs": runs, "findings": found}
        write_check(path, {**head(now), "seeds": seeds, "fixed_schedules": names, "total": total, "kernels": rows})
        console.print(f"{path.name} is written")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
