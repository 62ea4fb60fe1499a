"""How fast the tiny model generates and loads, on this machine: ``python -m benchmarks.model_speed --write``.

Whole runs of ``python -m dsv4.generate`` on a random checkpoint of the tiny configuration, in each of the numerics,
with and without drafts; medians of several of the exact ones. PyTorch references serve every call. Then the loading of
a larger checkpoint, whose files the page cache holds. Seconds are wall-clock: run it on a quiet machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.check_file import check_path, head, write_check
from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.checkpoint.write_tiny import write_checkpoint
from dsv4.runtime.model.presets import TINY

PASSES = 3
NEW_TOKENS = 100
WIDE = TINY.replace(n_routed_experts=256, moe_intermediate_size=512, vocab_size=65536)
"""For loading: the tiny model with many more bytes."""


def generated(folder: Path, threads: int, passes: int, *options: str) -> dict[str, Any]:
    """Tokens a second of one greedy text after a prompt of 100 tokens, by the program's own meter."""
    ids = ",".join(str(2 + 7 * place % 1000) for place in range(100))
    command = [
        *(sys.executable, "-m", "dsv4.generate", "--checkpoint", str(folder), "--prompt-ids", ids),
        *("--max-new-tokens", str(NEW_TOKENS), "--ignore-eos", "--json", *options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    runs = []
    for _ in range(passes):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    return {
        "options": " ".join(options),
        "new_tokens_per_s": statistics.median(run["new_tokens_per_s"] for run in runs),
        "new_tokens_per_s_of_runs": [run["new_tokens_per_s"] for run in runs],
        "prompt_tokens_per_s": statistics.median(run["prompt_tokens_per_s"] for run in runs),
    }


def loaded(folder: Path) -> dict[str, Any]:
    """Bytes a second of the loader, beside reading the same files and throwing them away."""
    files = sorted(folder.glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)

    def read() -> None:
        buffer = bytearray(16 << 20)
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass

    def seconds(call: Any) -> float:
        taken = []
        for _ in range(PASSES):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    read()
    read_s, load_s = seconds(read), seconds(lambda: load(folder))
    rates = {"read_gb_per_s": round(nbytes / read_s / 1e9, 3), "load_gb_per_s": round(nbytes / load_s / 1e9, 3)}
    return {"bytes": nbytes, "files": len(files), **rates}


def python_loop_ms() -> float:
    """A million additions in plain Python: how fast a core is at the moment, to compare machines by."""
    began, total = time.perf_counter(), 0
    for number in range(1_000_000):
        total += number
    return (time.perf_counter() - began) * 1e3


def main(
    write: Annotated[bool, typer.Option("--write", help="Write the dated result file.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of torch.")] = 2,
) -> None:
    """Measure, print, and with --write keep it under benchmarks/results."""
    console, now = Console(), datetime.now(UTC)
    rows = []
    with tempfile.TemporaryDirectory() as name, console.status("measuring the tiny model") as status:
        folder = Path(name, "tiny")
        write_checkpoint(folder, TINY, layout="fp8_mxfp4")
        for numerics in ("exact", "official", "engine"):
            for drafts in ([], ["--speculate"]):
                passes = PASSES if numerics == "exact" else 1
                rows.append(generated(folder, threads, passes, "--numerics", numerics, *drafts))
                status.update(
                    f"measuring the tiny model: {rows[-1]['options']}: {rows[-1]['new_tokens_per_s']} tokens/s"
                )
        status.update("measuring the loader")
        wide = Path(name, "wide")
        write_checkpoint(wide, WIDE, layout="fp8_mxfp4", shards=4)
        loading = loaded(wide)
    table = Table("options", "new tokens/s", "prompt tokens/s")
    for row in rows:
        table.add_row(row["options"], str(row["new_tokens_per_s"]), str(row["prompt_tokens_per_s"]))
    console.print(table)
    console.print(loading)
    if write:
        result = {
            **head(now),
            "machine": {
                "cores": len(os.sched_getaffinity(0)),
                "arch": platform.machine(),
                "threads": threads,
                "python_loop_ms": round(python_loop_ms(), 1),
            },
            "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
            "method": " ".join((__doc__ or "").split()),
            "passes": PASSES,
            "new_tokens": NEW_TOKENS,
            "generate": rows,
            "load": loading,
        }
        path = check_path(now, "cpu_model_speed")
        write_check(path, result)
        console.print(f"{path.name} is written")


if __name__ == "__main__":
    typer.run(main)
