"""Does the emulator stay silent about right kernels? ``python -m benchmarks.emulator_seeds --write`` for the file.

Every default kernel of both chips runs its small cases under twenty seeded schedules, in each of which every choice is
drawn, and under the fixed ones; one with programmatic dependent launch finds its tensors in use by the launch before.
Any finding, and any wrong value, is a false alarm or a mistake of ours: none is expected.

With ``--attention`` the kinds of attention over gathered rows that are no defaults are among them. There are some
hundred default kernels beside attention and RMSNorm: ``--one-each`` takes of each operator, chip and variant the
smallest, and ``--kernel-seconds`` bounds the drawn schedules; the file says how many each kernel ran under.
"""

from __future__ import annotations

import fnmatch
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.attention_kinds import attention_kernels
from benchmarks.harness.check_file import check_path, head, write_check
from dsv4.emulator.client import Client
from dsv4.emulator.policy import FIXED, mixed
from dsv4.generator.build import build
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import default_plans, list_ops, load_op
from dsv4.generator.verify.early import prior_tensors
from dsv4.generator.verify.emulator import EmulatedObject, from_artifact
from dsv4.generator.verify.mutation_run import small_cases, wide_cases
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact, KernelCache

SEEDS, FEWEST_SEEDS = 20, 2
ALL = ("*",)


def default_kernels(ops: Sequence[str] = ALL) -> list[KernelPlan]:
    """Every default kernel of every operator that is ready and matches one of ``ops``, for both chips.

    A pattern that begins with ``!`` takes out what it matches.
    """
    ready = [op for op in list_ops() if load_op(op).status == "ready"]
    wanted, unwanted = [each for each in ops if each[0] != "!"] or ALL, [each[1:] for each in ops if each[0] == "!"]
    chosen = [op for op in ready if _matches(op, wanted) and not _matches(op, unwanted)]
    return [each for op in chosen for arch in load_op(op).archs for each in default_plans(op, arch)]


def _matches(op: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(op, pattern) for pattern in patterns)


def one_each(plans: Sequence[KernelPlan]) -> list[KernelPlan]:
    """Of kernels that differ in sizes and dependent launch only, the smallest; of two, that with it."""
    smallest: dict[Any, KernelPlan] = {}
    for each in plans:
        flags = tuple((name, value) for name, value in each.variant.items() if name != "pdl")
        key = (each.op, each.arch, flags)
        if key not in smallest or _size(each) < _size(smallest[key]):
            smallest[key] = each
    return list(smallest.values())


def _size(plan: KernelPlan) -> tuple[int, bool]:
    return math.prod(plan.dims.values()), not plan.variant.get("pdl", False)


def run_kernel(artifact: Artifact, seeds: int, client: Client, *, seconds: float = math.inf) -> dict[str, Any]:
    """One kernel under the fixed schedules and ``seeds`` drawn ones; a wide case runs under the first two of each.

    After ``seconds`` no further schedule is drawn, but two are in any case.
    """
    manifest = artifact.manifest
    kernel = EmulatedObject(
        from_artifact(artifact), manifest.contract, prior=prior_tensors(manifest), client=client, threads=1
    )
    small, wide = small_cases(manifest), wide_cases(manifest)
    schedules = [policy.name for policy in (*FIXED, *(mixed(seed) for seed in range(seeds)))]
    with_wide = {*schedules[:2], *schedules[len(FIXED) : len(FIXED) + 2]}
    findings, worst, instructions, runs, drawn, began = [], 1.0, 0, 0, 0, time.monotonic()
    for number, name in enumerate(schedules):
        if drawn >= FEWEST_SEEDS and time.monotonic() - began > seconds:
            break
        drawn += number >= len(FIXED)
        for case in (*small, *(wide if name in with_wide else ())):
            kernel.schedule = name
            verdict = run_case(kernel, manifest.contract, case)
            assert kernel.report is not None
            runs += 1
            instructions += kernel.report.stats["instructions"]
            said = [finding.line() for finding in kernel.report.findings]
            findings += [f"{case.name}, {name}: {each}" for each in (*said, *verdict.findings)]
            worst = min(worst, verdict.cosine)
    return {
        "name": manifest.name, "op": manifest.op, "arch": manifest.arch, "dims": manifest.dims,
        "variant": manifest.variant, "ptx_sha256": manifest.ptx_sha256, "seeds": drawn, "runs": runs,
        "findings": findings, "worst_cosine": worst, "warp_instructions": instructions,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def run_all(artifacts: Sequence[Artifact], seeds: int, jobs: int, seconds: float) -> Iterator[dict[str, Any]]:
    """All kernels, ``jobs`` at a time, each with an emulating process of its own."""

    def one(artifact: Artifact) -> dict[str, Any]:
        with Client() as client:
            return run_kernel(artifact, seeds, client, seconds=seconds)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, artifacts)


def main(
    write: Annotated[bool, typer.Option("--write", help="Write the dated result file.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=FEWEST_SEEDS, help="Seeded schedules.")] = SEEDS,
    seconds: Annotated[
        float, typer.Option("--kernel-seconds", help="Seconds after which a kernel draws no further schedule.")
    ] = math.inf,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Kernels at a time.")] = len(os.sched_getaffinity(0)),
    op: Annotated[
        list[str] | None, typer.Option("--op", help="Only operators with this name (* and ?; with ! only the others).")
    ] = None,
    only: Annotated[str, typer.Option("--only", help="Kernels whose name contains this.")] = "",
    each: Annotated[bool, typer.Option("--one-each", help="Of each operator, chip and variant the smallest.")] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also the kinds of attention over gathered rows that are no defaults.")
    ] = False,
    name: Annotated[str, typer.Option("--as", help="Name of the file, behind the date.")] = "emulator_seeds",
    cache: Annotated[Path | None, typer.Option("--cache", help="Build in this kernel cache.")] = None,
) -> None:
    """Run the default kernels, print what was found, and with --write keep it under benchmarks/results/checks."""
    console = Console(width=150)
    defaults = default_kernels(op or ALL)
    chosen = [*(one_each(defaults) if each else defaults), *(attention_kernels() if attention else [])]
    plans = [plan for plan in chosen if only in plan.name]
    artifacts = []
    for built in build(plans, cache_root=cache or KernelCache().root, jobs=min(jobs, 2)):
        if built.artifact is None:
            raise RuntimeError(f"{built.plan.name}: {built.error}")
        artifacts.append(Artifact.read(built.artifact))
    rows = []
    for row in run_all(artifacts, seeds, jobs, seconds):
        rows.append(row)
        console.print(
            f"{row['name']}: {row['runs']} runs, {row['seeds']} drawn schedules, {len(row['findings'])} findings, "
            f"{row['seconds']} s"
        )
        for finding in row["findings"][:3]:
            console.print(f"  {finding}", markup=False)
    found = sum(len(row["findings"]) for row in rows)
    runs = sum(row["runs"] for row in rows)
    console.print(f"{len(rows)} kernels, {runs} runs, {found} findings")
    if write:
        now = datetime.now(UTC)
        path = check_path(now, name)
        drawn = [row["seeds"] for row in rows]
        total = {"kernels": len(rows), "of_defaults": len(defaults), "runs": runs, "findings": found}
        body = {
            "seeds": {"asked": seeds, "least": min(drawn, default=0), "together": sum(drawn)},
            "fixed_schedules": [policy.name for policy in FIXED],
            "total": total,
            "kernels": rows,
        }
        write_check(path, {**head(now), **body})
        console.print(f"{path.name} is written")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
