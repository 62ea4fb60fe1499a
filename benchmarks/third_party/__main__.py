"""Run quack's kernels in the emulator and print what it says; ``--write`` keeps the result under benchmarks/results.

What the file holds besides (runs by hand of examples that are not redistributed) stays as it is.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.check_file import check_path, head, write_check
from benchmarks.third_party import products, rows
from benchmarks.third_party.session import MISSING, Session, is_installed
from benchmarks.third_party.stand_in import CAPABILITY, SCHEDULES

PACKAGES = ("quack-kernels", "nvidia-cutlass-dsl", "apache-tvm-ffi", "torch")
METHOD = (
    "quack's public functions, unmodified, on CPU tensors; every kernel runs in the emulator under each schedule from "
    "the same memory. of_bound: largest error against float64 in units of its bound (one rounding of the output's "
    "dtype plus what float32 arithmetic may lose); at most 1 is right. emulate_s: all schedules, all threads."
)


def measured(arch: str, name: str, session: Session) -> dict[str, Any]:
    """One entry of the result."""
    found = session.answer(name)
    if "error" in found:
        return {"arch": arch, "case": name, "ok": False, "error": found["error"]}
    worst = max(check["of_bound"] for check in found["checks"])
    return {
        "arch": arch,
        "case": name,
        "ok": worst <= 1 and not found["findings"] and not found["differs"],
        "of_bound": round(worst, 4),
        "outputs": [[check["name"], check["shape"], float(f"{check['max_error']:.3g}")] for check in found["checks"]],
        "findings": found["findings"],
        "differs": found["differs"],
        "launches": found["launches"],
        "warp_instructions": found["instructions"],
        "compile_s": round(found["compile_s"], 2),
        "emulate_s": round(found["emulate_s"], 2),
        "m_warp_instructions_per_s": round(found["instructions"] / max(found["emulate_s"], 1e-9) / 1e6, 3),
    }


def main(write: Annotated[bool, typer.Option("--write", help="Write the dated result file.")] = False) -> None:
    """Run every case on both chips."""
    console = Console()
    if not is_installed():
        console.print(MISSING)
        raise typer.Exit(2)
    table = Table("chip", "case", "of bound", "findings", "Minstr/s", "right")
    entries = []
    for arch in CAPABILITY:
        with Session(arch) as session, console.status(arch):
            for name in (*rows.CASES, *products.cases(arch)):
                entry = measured(arch, name, session)
                entries.append(entry)
                shown = [entry.get(key, "") for key in ("of_bound", "findings", "m_warp_instructions_per_s")]
                table.add_row(arch, name, str(shown[0]), str(len(shown[1])), str(shown[2]), str(entry["ok"]))
    console.print(table)
    if write:
        now = datetime.now(UTC)
        path = check_path(now, "emulator_third_party")
        kept = json.loads(path.read_text()) if path.exists() else {}
        result = {
            **head(now),
            "op": "emulator_third_party",
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "cores": len(os.sched_getaffinity(0)),
            "schedules": SCHEDULES,
            "method": METHOD,
            "quack": entries,
        }
        write_check(path, {**kept, **result})
        console.print(f"written: {path.name}")
    raise typer.Exit(0 if all(entry["ok"] for entry in entries) else 1)


if __name__ == "__main__":
    typer.run(main)
