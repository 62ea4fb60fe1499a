"""Host cost of the public operators above the bare call of the kernel's host function, in one process.

    python -m benchmarks.host_cost [--rounds 121] [--json] [--out FILE]

Without a GPU a compiled stub that does nothing stands in for the kernel, which leaves the operator's own Python and
torch's bookkeeping: the same code, another machine. With a GPU the kernels of ``$DSV4_CACHE`` are called. Each round
times every way of calling in turn; the figures are medians over the rounds of the time a call, and what it is above the
bare call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dsv4
import dsv4.runtime.ops  # registers torch.ops.dsv4
from dsv4.runtime import dispatch

LIMITS_US = {"out=": 3.0, "allocating": 7.0, "torch.ops": 8.0}
CALLS_PER_ROUND = 250
"""Fewer than a stream queues, so that the host never waits for the GPU; and short against a neighbour's disturbance."""

_STUB = """
#include <stdint.h>
int __tvm_ffi_stub(void *self, const void *arguments, int32_t count, void *result) { return 0; }
"""


def stub_function() -> Callable[..., Any]:
    """A tvm-ffi function in compiled C that takes any arguments and does nothing. Needs gcc."""
    import tvm_ffi

    with tempfile.TemporaryDirectory(prefix="dsv4-stub-") as folder:
        library = Path(folder, "stub.so")
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=_STUB, text=True, check=True)
        function: Callable[..., Any] = tvm_ffi.load_module(str(library)).get_function("stub")
    return function


class _Stub:
    """Stands in for ``dispatch.Loaded`` on a machine without a GPU."""

    class artifact:
        class manifest:
            name, key = "stub", "stub"

    def __init__(self) -> None:
        self.function = stub_function()


def ways_to_call(device: torch.device) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each operator the bare call and each public way of making the same call."""

    def bf16(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.bfloat16, device=device)

    x, weight, y = bf16(16, 4096), bf16(4096), bf16(16, 4096)
    q, k, v, out = bf16(1, 64, 8, 128), bf16(1, 192, 2, 128), bf16(1, 192, 2, 128), bf16(1, 64, 8, 128)
    lse = torch.empty(1, 8, 64, dtype=torch.float32, device=device)
    norm = _bare("rms_norm", device, {"d": 4096}, {"T": 16}, {"pdl": False})
    sizes = {"B": 1, "Sq": 64, "Sk": 192, "Hq": 8, "Hkv": 2}
    attention = _bare("fmha", device, {"D": 128}, sizes, {"causal": True, "has_sink": False, "pdl": False})
    scale = 128**-0.5
    norm_op, attention_op = torch.ops.dsv4.rms_norm.default, torch.ops.dsv4.fmha.default
    return {
        "rms_norm [16, 4096]": {
            "bare": lambda: norm(x, weight, y, 1e-6),
            "out=": lambda: dsv4.rms_norm(x, weight, 1e-6, out=y),
            "allocating": lambda: dsv4.rms_norm(x, weight, 1e-6),
            "torch.ops": lambda: norm_op(x, weight, 1e-6),
        },
        "fmha [1, 64 × 192, 8/2, 128]": {
            "bare": lambda: attention(q, k, v, None, out, lse, scale),
            "out=": lambda: dsv4.fmha(q, k, v, causal=True, softmax_scale=scale, out=out, lse=lse),
            "allocating": lambda: dsv4.fmha(q, k, v, causal=True, softmax_scale=scale),
            "torch.ops": lambda: attention_op(q, k, v, None, True, scale),
        },
    }


def _bare(op: str, device: torch.device, dims: Any, sizes: Any, variant: Any) -> Callable[..., Any]:
    loaded = dispatch.serve(dispatch.Request(op, device, dims, sizes, variant))
    if loaded is None:
        raise SystemExit(f"host_cost: no kernel of {op} for {dims} {variant} in {dispatch.current_cache().root}")
    return loaded.function


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """µs a call of each way in each round, the ways taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in range(rounds):
        for name, call in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter_ns()
            for _ in range(CALLS_PER_ROUND):
                call()
            samples[name].append((time.perf_counter_ns() - start) / CALLS_PER_ROUND / 1e3)
    return samples


def driver_version() -> str | None:
    """The NVIDIA driver's version, ``None`` where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=121)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="write the JSON object to this file as well")
    choice = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        dsv4.configure(missing="raise")
        name = torch.cuda.get_device_name(device)
    else:
        stub = _Stub()
        dispatch.serve = lambda request: stub  # type: ignore[assignment,return-value]
        name = "CPU, stub kernels"
    samples = {case: measure(ways, choice.rounds) for case, ways in ways_to_call(device).items()}
    results = {case: {way: statistics.median(us) for way, us in ways.items()} for case, ways in samples.items()}
    record = {
        "device": name,
        "driver": driver_version() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_1_minute": os.getloadavg()[0],
        "rounds": choice.rounds,
        "calls_per_round": CALLS_PER_ROUND,
        "limits_us": LIMITS_US,
        "us": results,
        "least_us": {case: {way: min(us) for way, us in ways.items()} for case, ways in samples.items()},
    }
    if choice.out is not None:
        choice.out.write_text(json.dumps(record, indent=1) + "\n")
    if choice.json:
        print(json.dumps(record))
        return
    print(f"host cost, µs a call ({name}, torch {torch.__version__})")
    for case, times in results.items():
        print(f"  {case}: bare {times['bare']:.2f}")
        for way, limit in LIMITS_US.items():
            above = times[way] - times["bare"]
            print(f"    {way:<12}{times[way]:6.2f}   {above:+.2f} above bare (limit {limit:.0f})")


if __name__ == "__main__":
    main()
