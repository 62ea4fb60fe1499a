"""All bandwidth-bound operators and the decoding attention beside their peers, by one command (--help).

Each benchmark runs in a process of its own with a time limit; a call that ends before all are measured is gone on with
by the next one with the same ``--out``. Each operator gets one result file there (``benchmarks.readme_tables`` reads it
once it lies in ``benchmarks/results``), and ``progress.json`` says how each attempt ended.
"""

from __future__ import annotations

import fnmatch
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import result as results
from benchmarks.harness.campaign import DONE, Campaign, Job, Record
from benchmarks.harness.cli import FAILED, NO_GPU, USAGE, chosen
from benchmarks.harness.summary import summarise

ORDER = (
    # never measured, and the longest of a decoding step
    "sparse_attention_decode",
    "fmha_varlen",
    "sparse_attention_prefill",
    # the longest of a decoding step, and those that were changed since they were measured
    "mhc_post_pre",
    "sample",
    "indexer_q",
    "swiglu_quant",
    "quantize",
    "q_norm_rope_kv_insert",
    "router",
    "compressor",
    "inverse_rope_quant",
    "rms_norm_quant",
    "moe_combine",
    # the rest of a layer
    "router_choose",
    "router_hash",
    "expert_offsets",
    "mhc_pre",
    "mhc_post",
    "rms_norm",
    # once a step, or when weights are loaded
    "mhc_head",
    "embed",
    "attention_combine",
    "dequantize",
)
"""The benchmarks by what their figures are worth, the most valuable first."""
GPU_CHECK = "import torch; torch.ones(1 << 20, device='cuda').sum().item()"
GPU_CHECK_SECONDS = 120
out = Console(highlight=False, markup=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def jobs(names: list[str], rounds: int, peers: list[str]) -> list[Job]:
    """The command of each benchmark, in order of value; with ``peers`` of those that have one of them."""
    made = []
    for name in names:
        known = [peer.name for peer in importlib.import_module(f"benchmarks.{name}").BENCHMARK.peers()]
        wanted = [pattern for pattern in peers if fnmatch.filter(known, pattern)]
        if wanted or not peers:
            options = ["--rounds", str(rounds), *(text for peer in wanted for text in ("--peer", peer))]
            made.append(Job(name, (sys.executable, "-m", f"benchmarks.{name}", *options)))
    return made


def gpu_answers() -> bool:
    """Whether a process of its own can compute something on the GPU."""
    check = [sys.executable, "-c", GPU_CHECK]
    try:
        return subprocess.run(check, timeout=GPU_CHECK_SECONDS, check=False, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def told(name: str, record: Record) -> None:
    left = f", {record.left} left" if record.left else ""
    said = f": {record.said}" if record.said else ""
    out.print(f"{name}: {record.status} after {record.seconds:.0f} s, {record.cases} cases{left}{said}")


def main(
    folder: Annotated[Path, typer.Option("--out", help="Results and progress; the next call goes on from there.")],
    op: Annotated[list[str] | None, typer.Option(help="Only operators with this name (* and ? match).")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only peers with this name (* and ? match).")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds for all together.")] = 3600,
    limit: Annotated[float, typer.Option(min=120, help="Seconds for one operator, after which it is killed.")] = 600,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each peer in each mode.")] = 15,
    list_only: Annotated[bool, typer.Option("--list", help="Say what is left, in order; measure nothing.")] = False,
) -> None:
    """Measure what is left, print how ours compares with the best peer, and say what is still left.

    Exit code: 0 all are measured, 1 something is left, 2 wrong usage, 3 no GPU.
    """
    names = chosen("--op", ORDER, op)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        campaign = Campaign(jobs(names, rounds, peer or []), folder, healthy=gpu_answers, told=told)
    except ValueError as error:
        err.print(str(error))
        raise typer.Exit(USAGE) from None
    if list_only:
        out.print("\n".join(job.name for job in campaign.queue()))
        return
    if campaign.queue() and not gpu_answers():
        err.print("a CUDA device is needed; torch sees none that answers")
        raise typer.Exit(NO_GPU)
    ended = campaign.measure(budget_s=budget, limit_s=limit)
    out.print(table(folder, campaign))
    if ended:
        err.print(ended)
    left = [job.name for job in campaign.queue()]
    if left:
        err.print(f"left: {', '.join(left)}; the same command goes on with them")
        raise typer.Exit(FAILED)


def table(folder: Path, campaign: Campaign) -> Table:
    """How far each operator is, and ours beside the best peer: geometric means, and rows in which it is behind."""
    shown = Table(
        "operator", "how it ended", "cases", "cold", "warm", "behind (cold)", "peers that took part", box=None
    )
    for name in campaign.jobs:
        record = campaign.records.get(name)
        if record is None or not record.file:
            shown.add_row(name, record.status if record else "not tried", "", "", "", "", "")
            continue
        found = summarise(results.read(folder / record.file))
        shown.add_row(
            name, record.status if record.status != DONE else "", str(found.cases),
            *(f"{value:.2f}×" if value else "–" for value in (found.cold, found.warm)),
            f"{found.behind} of {found.compared}", ", ".join(found.peers) or "none",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    typer.run(main)
