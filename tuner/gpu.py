"""The GPU that a sweep needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.tuner.storage import FileLock
from dsv4.tuner.worker import Outcome


def exclusively(measure: Callable[..., list[Outcome]], lock: Path) -> Callable[..., list[Outcome]]:
    """``measure``, one at a time among all processes that hold the same ``lock``: two sweeps on one GPU would disturb
    each other's times. They compile while they wait for each other."""

    def measured(*arguments: Any, **options: Any) -> list[Outcome]:
        with FileLock(lock).held():
            return measure(*arguments, **options)

    return measured


def gpu_lock(root: Path, index: int) -> Path:
    """The lock of a GPU in the cache ``root``, whatever number the process knows it by."""
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", index)
    return root / f"gpu-{uuid}.lock"


_WITHOUT = {"sweep": "plan", "model": "model --plan"}


def require_gpu(plan: KernelPlan, by: str = "sweep") -> int:
    """The index of this machine's GPU. Raises UsageError, in one line, where it cannot run ``plan`` for the command
    ``by``."""
    wanted = " or ".join(f"{major}.{minor}" for major, minor in plan.compute_capabilities)
    need = f"{by} measures on the GPU: it needs one of compute capability {wanted} ({plan.arch})"
    if not torch.cuda.is_available():
        raise UsageError(f"{need}; this machine has none ('dsv4-tune {_WITHOUT[by]}' works without)")
    capability = torch.cuda.get_device_capability()
    if capability not in plan.compute_capabilities:
        raise UsageError(f"{need}; this is a {torch.cuda.get_device_name()} ({capability[0]}.{capability[1]})")
    return torch.cuda.current_device()
