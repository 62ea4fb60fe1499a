"""The command line that every operator's benchmark has: ``python -m benchmarks.<op> --help``."""

from __future__ import annotations

import fnmatch
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import result as results
from benchmarks.harness.aims import read_reasons
from benchmarks.harness.machine import commit
from benchmarks.harness.operator import Case, OperatorBenchmark
from benchmarks.harness.rounds import CaseResult, measure
from benchmarks.harness.session import LocalSession, Session
from benchmarks.harness.worker import WorkerFailed, WorkerSession

FAILED, USAGE, NO_GPU = 1, 2, 3
TELLING = (1, 64, 8192)
"""Token counts that say most: a step of decoding, a full one, a chunk of a prefill."""
out = Console(highlight=False, markup=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def main(bench: OperatorBenchmark, module: str) -> None:
    """Parse the command line and run ``bench``, which ``module`` (a dotted name) holds as ``BENCHMARK``."""
    typer.run(command(bench, module))


def command(bench: OperatorBenchmark, module: str) -> Callable[..., None]:
    """The command as a function with typer's annotations."""
    labels = ", ".join(case.label for case in bench.cases())
    names = ", ".join(peer.name for peer in bench.peers())

    def run(
        case: Annotated[list[str] | None, typer.Option(help="Only cases with this label (* and ? match).")] = None,
        peer: Annotated[list[str] | None, typer.Option(help="Only peers with this name (* and ? match).")] = None,
        rounds: Annotated[int, typer.Option(min=1, help="Samples of each peer in each mode.")] = 15,
        seed: Annotated[int, typer.Option(help="Seed of the inputs; each case has its own.")] = 0,
        out_dir: Annotated[Path, typer.Option("--out", help="Where the dated result goes.")] = results.RESULTS,
        isolate: Annotated[bool, typer.Option("--isolate", help="One process per peer, in turns.")] = False,
        python: Annotated[
            list[str] | None, typer.Option(help="PEER=PATH: the Python that this peer lives under (implies --isolate).")
        ] = None,
        seconds: Annotated[
            float, typer.Option(min=0, help="Begin no further case after so many; the result says which are left.")
        ] = math.inf,
        list_only: Annotated[bool, typer.Option("--list", help="List cases and peers; measure nothing.")] = False,
    ) -> None:
        if list_only:
            out.print(f"cases: {labels}\npeers: {names}")
            return
        cases = chosen("--case", [each.label for each in bench.cases()], case)
        peers = chosen("--peer", [each.name for each in bench.peers()], peer)
        pythons = interpreters(python or [], peers)
        require_gpu()
        selected = [each for each in bench.cases() if each.label in cases]
        run_benchmark(bench, module, selected, peers, rounds, seed, out_dir, isolate or bool(pythons), pythons, seconds)

    run.__doc__ = (
        f"{bench.op} beside its peers on the current GPU: GPU time by CUDA-graph replay, cold and warm L2, in "
        f"interleaved rounds.\n\nCases: {labels}.\n\nPeers: {names}. One that is not installed is skipped and said so."
        "\n\nExit code: 0 measured, 1 void or failed, 2 wrong usage, 3 no GPU."
    )
    return run


def chosen(option: str, known: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """The names that match, in their own order; exit code 2 where a pattern matches none."""
    if not patterns:
        return list(known)
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            err.print(f"{option}: found {pattern!r}; valid: {', '.join(known)}")
            raise typer.Exit(USAGE)
    return [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def interpreters(given: Sequence[str], peers: Sequence[str]) -> dict[str, str]:
    """``PEER=PATH`` options as a mapping; exit code 2 where one is not of that form or names no peer."""
    found = {}
    for text in given:
        name, _, path = text.rpartition("=")
        if name not in peers or not Path(path).is_file():
            err.print(
                f"--python: found {text!r}; valid: PEER=PATH, a peer of {', '.join(peers)}",
                markup=False,
                soft_wrap=True,
            )
            raise typer.Exit(USAGE)
        found[name] = path
    return found


def require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        err.print(
            "a CUDA device is needed; torch sees none (tools/gpu_host.py runs a command on another machine)",
            soft_wrap=True,
        )
        raise typer.Exit(NO_GPU)


def run_benchmark(
    bench: OperatorBenchmark,
    module: str,
    cases: Sequence[Case],
    names: Sequence[str],
    rounds: int,
    seed: int,
    folder: Path,
    isolated: bool,
    pythons: dict[str, str],
    seconds: float = math.inf,
) -> None:
    """Measure, print, write; exit code 1 where the run is void or a worker failed (nothing is written then).

    With a limit in seconds the cases come in an order of their own (``telling_first``); the file has theirs. Ctrl-C and
    SIGTERM end the run with what has been measured so far.
    """
    sessions: dict[str, Session] = {}
    reasons = read_reasons()
    began = time.monotonic()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if isolated:
            for name in names:
                sessions[name] = WorkerSession(module, name, python=pythons.get(name, sys.executable))
        else:
            local = LocalSession(bench, [peer for peer in bench.peers() if peer.name in names])
            sessions = dict.fromkeys(names, local)
        measured, readings = measure(
            sessions,
            cases if seconds == math.inf else telling_first(cases),
            rounds=rounds,
            seed=seed,
            progress=lambda result: print_case(bench, result),
            goes_on=lambda: time.monotonic() - began < seconds,
        )
        descriptions = {name: session.describe() for name, session in sessions.items()}
    except WorkerFailed as error:
        err.print(str(error))
        raise typer.Exit(FAILED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        for session in sessions.values():
            session.close()
    places = {case.label: place for place, case in enumerate(cases)}
    measured.sort(key=lambda each: places[each.case.label])
    left = [label for label in places if label not in {each.case.label for each in measured}]
    result = results.assemble(
        bench, measured, readings, descriptions,
        rounds=rounds, isolated=isolated, commit=commit(), left=left, reasons=reasons,
    )  # fmt: skip
    path = results.write(result, folder)
    print_end(result, path)
    if result["void"]:
        raise typer.Exit(FAILED)


def telling_first(cases: Sequence[Case]) -> list[Case]:
    """Cases of one token, of 64 and of 8192 in front of the others; of a kind, in their own order."""
    return sorted(cases, key=lambda case: not set(TELLING) & {case.sizes.get(name) for name in ("T", "R")})


def print_case(bench: OperatorBenchmark, result: CaseResult) -> None:
    """One table: each peer's medians and spread, and how ours compares."""
    table = Table(title=result.case.label, title_justify="left", show_edge=False)
    columns = "peer", "cold µs", "p10–p90", "warm µs", "p10–p90", "host µs", "ours ÷ cold", "÷ warm", "cold GB/s"
    for column in columns:
        table.add_column(column, justify="left" if column == "peer" else "right")
    ours = result.summaries.get(bench.ours)
    moved_bytes = bench.work(result.case).bytes
    for name, modes in result.summaries.items():
        cold, warm, host = modes["cold"], modes["warm"], modes["host"]
        ratios = (
            [f"{ours[mode].median_us / modes[mode].median_us:.3f}" for mode in ("cold", "warm")] if ours else ["", ""]
        )
        table.add_row(
            name,
            f"{cold.median_us:.2f}",
            f"{cold.p10_us:.2f}–{cold.p90_us:.2f}",
            f"{warm.median_us:.2f}",
            f"{warm.p10_us:.2f}–{warm.p90_us:.2f}",
            f"{host.median_us:.1f}",
            *ratios,
            f"{moved_bytes / cold.median_us / 1e3:.0f}",
        )
    out.print(table)
    for name, opened in result.opened.items():
        if opened.skipped:
            out.print(f"  {name}: skipped, {opened.skipped}")


def print_end(result: dict[str, Any], path: Path) -> None:
    top = result["ceilings"]
    out.print(
        f"ceilings of this run: copy {top['copy_gb_s']:.0f} GB/s (read + written), product "
        f"{top['product_tflops']:.0f} TFLOP/s, empty graph node {top['empty_node_us']:.2f} µs",
        markup=False,
    )
    for reason in result["void"]:
        err.print(f"void: {reason}")
    if result["left"]:
        err.print(f"left out {len(result['left'])} cases: {', '.join(result['left'])}")
    out.print(str(path))
