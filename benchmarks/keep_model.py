"""Keep a whole-model sweep that ran on a GPU: ``python -m benchmarks.keep_model FOLDER flash``.

FOLDER holds model.json (``dsv4-tune model --json``; one a run where it took several, model1.json, model2.json …: of
each kernel the last one that swept it counts), entries.json (``dsv4-tune export``) and studies/ (the journals of the
cache). A dated folder of ``benchmarks/results/models`` gets turns.json (each kernel: its shapes, what the winner of
every bucket gained on the default, how many configurations which GPU ran), entries.json (to be imported anywhere) and
the report of each study as a page.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.machine import device_slug
from benchmarks.harness.result import RESULTS, replace_text
from dsv4.generator.console import UsageError
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner.commands.report import gathered
from dsv4.tuner.page import page
from dsv4.tuner.tried import changed

MODELS = RESULTS / "models"
_OF_A_KERNEL = ("op", "dims", "variant", "share", "calls", "shapes", "obstacle", "outcome", "failed", "served")


def kept(model: dict[str, Any], device: str, date: str) -> dict[str, Any]:
    """What is kept of ``dsv4-tune model --json``. Raises UsageError where its times are made up."""
    if device == FAKE_DEVICE:
        raise UsageError(f"model.json: found times of {device}; valid: a sweep on a GPU")
    kernels = [{name: each[name] for name in _OF_A_KERNEL} | _found(each["result"]) for each in model["kernels"]]
    return {"date": date, "device": device, "steps": model["steps"], "kernels": kernels}


def last_swept(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``dsv4-tune model --json`` of several runs, the oldest first, as one: the newest, but of a kernel that it passed
    over (entries served it already) what the last run before says that swept it."""
    *before, newest = runs

    def last(kernel: dict[str, Any]) -> dict[str, Any]:
        same = [each for run in before for each in run["kernels"] if _which(each) == _which(kernel) and each["result"]]
        return kernel if kernel["result"] or not same else {**same[-1], "served": kernel["served"]}

    return {**newest, "kernels": [last(kernel) for kernel in newest["kernels"]]}


def _which(kernel: dict[str, Any]) -> list[Any]:
    return [kernel["op"], kernel["dims"], kernel["variant"]]


def _found(result: dict[str, Any] | None) -> dict[str, Any]:
    """What a sweep says: nothing of a kernel that was not swept."""
    if result is None:
        return {}
    default = result["default"]
    winners = result["winners"] or [{**result, "bucket": {}}]
    return {
        "study": result["study"],
        "tried": result["tried"],
        "configurations_failed": len(result["failed"]),
        "gpus": result["gpus"],
        "default": {name: default[name] for name in ("config", "us")},
        "winners": [
            {
                "bucket": each["bucket"],
                "changes": changed(each["best"]["config"], default["config"]),
                "default_us": each["default"]["us"],
                "best_us": each["best"]["us"],
                "chosen": each["chosen"],
                "speedup": round(each["speedup"], 4),
                "why": each["why"],
            }
            for each in winners
        ],
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Where the sweep's files lie.", exists=True, file_okay=False)],
    name: Annotated[str, typer.Argument(help="The model.")],
) -> None:
    """Write the dated folder."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    sources = sorted(folder.glob("model*.json"))
    if not sources:
        raise UsageError(f"{folder}: found no model.json; valid: a folder with what dsv4-tune model --json printed")
    date = datetime.fromtimestamp(sources[-1].stat().st_mtime, UTC).date().isoformat()
    *runs, entries = (json.loads(each.read_text(encoding="utf-8")) for each in (*sources, folder / "entries.json"))
    model = last_swept(runs)
    device = model.get("device") or entries["entries"][0]["question"]["device"]["name"]
    turns = kept(model, device, date)
    target = MODELS / f"{date}_{device_slug(turns['device'])}_{name}"
    target.mkdir(parents=True, exist_ok=True)
    replace_text(target / "turns.json", json.dumps(turns, indent=1) + "\n")
    shutil.copyfile(folder / "entries.json", target / "entries.json")
    for kernel in turns["kernels"]:
        if kernel.get("tried"):
            journal = folder / "studies" / f"{'.'.join(kernel['study'].split('.')[:2])}.journal"
            replace_text(target / f"{kernel['study']}.html", page(gathered(kernel["study"], None, None, str(journal))))
    swept = [kernel for kernel in turns["kernels"] if "winners" in kernel]
    gained = sum(each["chosen"] for kernel in swept for each in kernel["winners"])
    out.print(f"{target}: {len(swept)} of {len(turns['kernels'])} kernels swept, {gained} winners kept")


if __name__ == "__main__":
    typer.run(main)
