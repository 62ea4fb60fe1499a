"""One result from several runs of a benchmark, each of some of its cases: ``python -m benchmarks.merge --help``.

Runs of one operator on one kind of device with the same driver and versions, none of them void. A case that two runs
have is taken from the later one. Every case says of which run it is (``run``), and every run keeps its date, commit,
rounds and controls; what a case achieved stays as its own run said it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.aims import read_reasons, with_verdicts
from benchmarks.harness.controls import Controls, ceilings
from benchmarks.harness.operator import OperatorBenchmark
from benchmarks.harness.result import read, write

OF_A_RUN = ("date", "commit", "isolated", "rounds", "controls")
USAGE = 2


def merged(results: Sequence[Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """The runs as one result, cases in the given ``order`` of labels. Raises ``ValueError`` where they do not belong
    together, naming the field.
    """
    runs = sorted(results, key=lambda each: each["date"])
    first, last = runs[0], runs[-1]
    for each in runs[1:]:
        for name, here, there in (
            ("op", first["op"], each["op"]),
            ("ours", first["ours"], each["ours"]),
            ("device.name", first["device"]["name"], each["device"]["name"]),
            ("device.driver", first["device"].get("driver"), each["device"].get("driver")),
            ("versions", _shared(first, each), _shared(each, first)),
        ):
            if here != there:
                raise ValueError(f"{name}: found {here!r} and {there!r}; valid: the same in every run")
    for each in runs:
        if each["void"]:
            raise ValueError(f"void: found a void run of {each['date']}; valid: none")
    found: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(runs):
        found |= {case["label"]: {**case, "run": number} for case in each["cases"]}
    unknown = sorted(set(found) - set(order))
    if unknown:
        raise ValueError(f"cases: found {', '.join(unknown)}; valid: those of the benchmark today")
    controls = [reading for each in runs for reading in each["controls"]]
    peers = {name: about for each in runs for name, about in each["peers"].items()}
    return {
        **last,
        "versions": {name: version for each in runs for name, version in each["versions"].items()},
        "peers": peers,
        "shown": [name for name in peers if any(name in each["shown"] for each in runs)],
        "ceilings": ceilings([Controls(**reading) for reading in controls]).as_dict(),
        "controls": controls,
        "runs": [{name: each[name] for name in OF_A_RUN} for each in runs],
        "left": [label for label in order if label not in found],
        "cases": [found[label] for label in order if label in found],
    }


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """The versions in ``one`` of what both runs name: a peer that took part in only one of them is no difference."""
    return {name: version for name, version in one["versions"].items() if name in other["versions"]}


def main(
    files: Annotated[list[Path], typer.Argument(help="Result files of one operator.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the merged result goes.")],
) -> None:
    """Write the runs as one dated result. Exit code 2 where they do not belong together; nothing is written then."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        runs = [read(path) for path in files]
        bench: OperatorBenchmark = importlib.import_module(f"benchmarks.{runs[0]['op']}").BENCHMARK
        result = merged(runs, [case.label for case in bench.cases()])
    except (ValueError, OSError) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise typer.Exit(USAGE) from None
    console.print(str(write(with_verdicts(result, read_reasons()), out_dir)))
    if result["left"]:
        console.print(f"still left: {', '.join(result['left'])}")


if __name__ == "__main__":
    typer.run(main)
