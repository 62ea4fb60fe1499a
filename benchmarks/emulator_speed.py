"""How fast the emulator is, on this machine: ``python -m benchmarks.emulator_speed --write``.

Four questions: warp-instructions a second of plain arithmetic with poison and race records on; the same over our own
kernels, matrix products and copies included; how long one CTA of a 128-head, 1,152-key, head_dim-512 attention takes
(one thread each, medians of several passes); and how long it takes to verify every default kernel of both chips, on all
cores, once. Seconds are wall-clock: run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.harness.check_file import check_path, head, write_check
from dsv4.emulator import library, run_artifact
from dsv4.emulator.lower import lower
from dsv4.emulator.machine import Launch, Region, run_grid
from dsv4.emulator.policy import FIXED
from dsv4.emulator.ptx import parse
from dsv4.generator.build import build
from dsv4.generator.spec import plan
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.cache import Artifact

PASSES = 5
ARITHMETIC = """.version 8.8
.target sm_90a
.visible .entry loop(.param .b64 out, .param .b32 trips)
{
.reg .pred %p; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .b64 %d<3>;
ld.param.b64 %d0, [out]; ld.param.b32 %r0, [trips];
mov.u32 %r1, %tid.x; mov.u32 %r2, 0; cvt.rn.f32.u32 %f0, %r1; mov.f32 %f1, 0f3F800000;
LOOP:
fma.rn.f32 %f1, %f1, %f0, %f0; add.s32 %r3, %r1, %r2; xor.b32 %r1, %r1, %r3; shl.b32 %r4, %r3, 3;
max.f32 %f2, %f1, %f0; selp.b32 %r5, %r3, %r4, %p; mul.lo.s32 %r6, %r5, %r3; add.s32 %r2, %r2, 1;
setp.lt.s32 %p, %r2, %r0; @%p bra LOOP;
mul.wide.u32 %d1, %r6, 0; add.s64 %d2, %d0, %d1; st.global.b32 [%d2], %r6; ret;
}
"""


def arithmetic(trips: int = 50_000) -> dict[str, Any]:
    """Million warp-instructions a second of a loop of ten arithmetic instructions, 4 warps."""
    module = parse(ARITHMETIC)
    program = lower(module, module.entries["loop"], library.load().handlers)
    out, block = np.zeros(64, np.uint32), np.zeros(16, np.uint8)
    block[:8].view(np.uint64)[0] = out.ctypes.data
    block[8:12].view(np.uint32)[0] = trips
    regions = [
        Region("parameters", block.ctypes.data, 16, writable=False, parameters=True),
        Region("out", out.ctypes.data, out.nbytes),
    ]
    launch = Launch((1, 1, 1), (128, 1, 1), param_address=block.ctypes.data, param_bytes=16)
    rates = []
    for _ in range(PASSES):
        start = time.perf_counter()
        result = run_grid(program, launch, replace(FIXED[0], max_findings=1), regions)
        rates.append(result.stats["instructions"] / (time.perf_counter() - start) / 1e6)
    return {"m_warp_instructions_per_s": round(statistics.median(rates), 1), "of": [round(r, 1) for r in rates]}


def timed(call: Callable[[], Any]) -> tuple[Any, list[float]]:
    """What a call returns and its seconds, after one call that warms up."""
    call()
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return found, seconds


def attention(root: Path, arch: str, dims: dict[str, int], sizes: tuple[int, int, int]) -> dict[str, Any]:
    """One CTA's work of a dense attention: `sizes` are queries (heads of a query count as rows), keys, head count."""
    (built,) = build([plan("fmha", arch, dims=dims)], cache_root=root, jobs=1)
    if built.artifact is None:
        raise RuntimeError(f"fmha {arch} {dims}: {built.error}")
    artifact = Artifact.read(built.artifact)
    manifest: Manifest = artifact.manifest
    queries, keys, heads = sizes
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(1, queries, heads, dims["D"], generator=generator).to(torch.bfloat16)
    k, v = (torch.randn(1, keys, heads, dims["D"], generator=generator).to(torch.bfloat16) for _ in range(2))
    values = {"q": q, "k": k, "v": v, "softmax_scale": dims["D"] ** -0.5}
    values |= {"o": torch.empty_like(q), "lse": torch.empty(1, heads, queries)}
    report, seconds = timed(lambda: run_artifact(artifact, values, schedules=FIXED[0].name, threads=1))
    if report.findings:
        raise RuntimeError(f"{manifest.name}: {report.findings[0].line()}")
    launch = report.launches[0]
    return {
        "kernel": manifest.name,
        "config": manifest.config,
        "shape": f"{queries} query rows, {keys} keys, {heads} head, head_dim {dims['D']}",
        "ctas": launch.grid[0] * launch.grid[1] * launch.grid[2],
        "warp_instructions": report.stats["instructions"],
        "async_operations": report.stats["async_ops"],
        "median_s": round(statistics.median(seconds), 3),
        "of_s": [round(s, 3) for s in seconds],
        "m_warp_instructions_per_s": round(report.stats["instructions"] / statistics.median(seconds) / 1e6, 3),
    }


def everything() -> dict[str, Any]:
    """``dsv4-gen verify --device emulator`` over the default kernels, which are built before the clock starts."""
    program = Path(sys.executable).with_name("dsv4-gen")
    subprocess.run([program, "build"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start = time.perf_counter()
    done = subprocess.run([program, "verify", "--device", "emulator", "--json"], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    kernels = json.loads(done.stdout)["kernels"]
    return {
        "kernels": len(kernels),
        "right_without_findings": sum(each["ok"] for each in kernels),
        "runs": sum(each["runs"] for each in kernels),
        "wall_s": round(seconds, 1),
    }


def main(write: Annotated[bool, typer.Option("--write", help="Write the dated result file.")] = False) -> None:
    """Measure, print, and with --write keep the result under benchmarks/results."""
    console, now = Console(), datetime.now(UTC)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, console.status("measuring the emulator"):
        root = Path(folder) / "cache"
        root.mkdir(mode=0o700)
        result = {
            **head(now),
            "op": "emulator_speed",
            "machine": {
                "processor": _processor(),
                "cores": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
            },
            "method": "one thread, poison and race records on, schedule 'late'; wall-clock medians of "
            f"{PASSES} calls after one; a kernel's time contains its host code and the copies of its tensors",
            "arithmetic": arithmetic(),
            "kernels": [
                attention(root, "sm_100a", {"D": 512}, (128, 1152, 1)),
                attention(root, "sm_100a", {"D": 128}, (256, 2176, 1)),
                attention(root, "sm_90a", {"D": 128}, (128, 2176, 1)),
            ],
            "verify_everything": everything(),
        }
    console.print_json(json.dumps(result))
    if write:
        path = check_path(now, "emulator_speed")
        write_check(path, result)
        console.print(f"written: {path.name}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    typer.run(main)
