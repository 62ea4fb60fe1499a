"""FlashMLA's cases through our kernels on a GPU: ``python -m benchmarks.flash_mla_cases --help``.

It ends after ``--seconds``; ``--continue`` goes on from the result file of an earlier run, with the cases that are
left. ``--build`` needs the compiler and no GPU, and makes the kernels that all cases need.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.flash_mla_cases.kernels import build_all, names_of_all
from benchmarks.flash_mla_cases.product import all_cases
from benchmarks.flash_mla_cases.result import Result
from benchmarks.harness.check_file import check_path, head, write_check
from benchmarks.harness.machine import commit, describe_device, device_slug, versions

FAILED = 1
console = Console(highlight=False, markup=False, soft_wrap=True)


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Start no case after so long.")] = 600,
    match: Annotated[str, typer.Option(help="Only cases whose label has this in it.")] = "",
    write: Annotated[bool, typer.Option("--write", help="Keep the result under its dated name.")] = False,
    file: Annotated[Path | None, typer.Option(help="Keep the result here.")] = None,
    earlier: Annotated[Path | None, typer.Option("--continue", help="Result of an earlier run to go on from.")] = None,
    at: Annotated[str | None, typer.Option("--commit", help="What the files are of, where git cannot say it.")] = None,
    build: Annotated[Path | None, typer.Option(help="Build the kernels into this cache, and end.")] = None,
    list_kernels: Annotated[bool, typer.Option("--list-kernels", help="Name the kernels, and end.")] = False,
) -> None:
    """Run the cases; exit code 1 where one fails."""
    if list_kernels:
        console.print("\n".join(names_of_all()))
        return
    if build is not None:
        wrong = build_all(build)
        console.print("\n".join(wrong) or f"{len(names_of_all())} kernels are in {build}")
        raise typer.Exit(FAILED if wrong else 0)
    result = Result.read(json.loads(earlier.read_text())) if earlier else Result()
    run_all(result, seconds, match)
    now = datetime.now(UTC)
    text: dict[str, Any] = {**head(now), "device": describe_device(), "versions": versions(), **result.as_json()}
    text["commit"] = at or commit()
    console.print(json.dumps({name: text[name] for name in ("total", "groups", "worst")}, indent=1))
    for place in (file, check_path(now, f"{device_slug(text['device']['name'])}_flash_mla_cases") if write else None):
        if place is not None:
            write_check(place, text)
            console.print(f"written: {place.name}")
    raise typer.Exit(FAILED if result.failures else 0)


def run_all(result: Result, seconds: float, match: str) -> None:
    """Run the cases that ``result`` has not, for so long, and put into it how they ended."""
    import torch

    import dsv4
    from benchmarks.flash_mla_cases.inputs import Maker
    from benchmarks.flash_mla_cases.run import check

    dsv4.configure(missing="raise")
    started = time.monotonic()
    maker = Maker(torch.device("cuda"))
    cases = [case for case in all_cases() if match in case.label]
    result.begin(cases)
    with torch.inference_mode(), dsv4.trace_dispatch() as calls:
        for case in result.left(cases):
            if time.monotonic() - started > seconds:
                break
            try:
                verdict = check(case, maker)
                result.add(case, verdict.errors, verdict.findings)
            except dsv4.KernelMissing:
                result.add(case, {}, ["the cache has no kernel for it"])
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                result.add(case, {}, ["the device's memory does not hold it"])
            except Exception as error:  # a fault of the device ends the run, with what there is
                result.add(case, {}, [f"{type(error).__name__}: {str(error).splitlines()[0]}"])
                if isinstance(error, torch.AcceleratorError):
                    break
            if result.failures and result.failures[-1]["case"] == case.label:
                console.print(f"{case.label}: {'; '.join(result.failures[-1]['findings'])}")
    result.ended(time.monotonic() - started, sorted({f"{call.implementation} {call.key}" for call in calls}))


if __name__ == "__main__":
    typer.run(main)
