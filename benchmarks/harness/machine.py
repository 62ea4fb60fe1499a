"""The machine that a result was measured on: device, driver, clocks, power, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from typing import Any

QUERY = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}
PACKAGES = ("triton", "apache-tvm-ffi")


def describe_device() -> dict[str, Any]:
    """Name, multiprocessors, memory and L2 in bytes of the current CUDA device, and what nvidia-smi says now."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        **smi(),
    }


def smi() -> dict[str, Any]:
    """Driver, clocks, power and temperature from nvidia-smi; empty where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY.values())}", "--format=csv,noheader,nounits", "--id=0"]
    text = _output(command)
    return parse_smi(text) if text else {}


def parse_smi(text: str) -> dict[str, Any]:
    """One CSV line of :data:`QUERY`'s values as numbers where they are numbers; ``[N/A]`` becomes ``None``."""
    values = [value.strip() for value in text.strip().splitlines()[0].split(",")]
    return {name: _number(value) for name, value in zip(QUERY, values, strict=True)}


def _number(value: str) -> Any:
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value) if "." in value else int(value)
    return None if value.startswith("[") else value


def versions() -> dict[str, str]:
    """Python, torch, CUDA and packages that matter for a timing, where they are there."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit that is checked out, with ``+`` where files differ from it; ``None`` without git or a commit."""
    head = _output(["git", "rev-parse", "--verify", "--quiet", "HEAD"])
    if not head:
        return None
    return head.strip() + ("+" if _output(["git", "status", "--porcelain", "--untracked-files=no"]) else "")


def device_slug(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``h100-80gb-hbm3``: for file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
