"""Build what the benchmarks want, for a machine without a compiler: ``python -m benchmarks.wanted_kernels --help``.

The kernels of all operators in ``benchmarks.all_operators``, with and without dependent launch, default configurations,
into a kernel cache that can be carried (``DSV4_CACHE`` names it there). What the cache has already is not built again.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.all_operators import ORDER
from benchmarks.harness.cli import FAILED, chosen
from benchmarks.harness.operator import OperatorBenchmark, Unavailable
from benchmarks.harness.summary import OUR_PREFIX
from benchmarks.kernels import Wanted, recorded
from dsv4.generator.build import build
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import Planner, load_op
from dsv4.runtime.cache import KernelCache


def wanted(names: Sequence[str]) -> list[Wanted]:
    """What our peers of these benchmarks ask for in any case, each once, in the order of the benchmarks."""
    with recorded() as asked:
        for name in names:
            bench: OperatorBenchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
            ours = [peer for peer in bench.peers() if peer.name.startswith(OUR_PREFIX)]
            for peer in ours:
                for case in bench.cases():
                    try:
                        peer.prepare(case)
                    except Unavailable:  # it does not take part in this case
                        continue
    return list(dict.fromkeys(asked))


def plans(kernels: Sequence[Wanted], arch: str) -> list[KernelPlan]:
    """Those that exist on ``arch``, with those for some sizes alone."""
    there = [each for each in kernels if arch in load_op(each.op).archs]
    planners = [Planner(each.op, arch, dims=dict(each.dims), variant=dict(each.variant)) for each in there]
    return [kernel for planner in planners for kernel in (planner.plan(), *planner.bucketed())]


def main(
    arch: Annotated[str, typer.Option(help="sm_90a or sm_100a.")] = "sm_90a",
    op: Annotated[list[str] | None, typer.Option(help="Only benchmarks with this name (* and ? match).")] = None,
    cache: Annotated[Path | None, typer.Option(help="The kernel cache that they are built in.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Kernels at a time.")] = 2,
    list_only: Annotated[bool, typer.Option("--list", help="Name them; build nothing.")] = False,
) -> None:
    """Build the kernels; exit code 1 where one could not be built."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    made = plans(wanted(chosen("--op", ORDER, op)), arch)
    if list_only:
        out.print("\n".join(each.name for each in made))
        return
    failed = 0
    for built in build(made, cache_root=cache or KernelCache().root, jobs=jobs):
        if built.artifact is None:
            failed += 1
            out.print(f"{built.plan.name}: {built.error}")
    out.print(f"{len(made) - failed} of {len(made)} kernels for {arch} are there")
    if failed:
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
