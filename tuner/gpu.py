"""The GPU that a sweep needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.identity import device_identity
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


ALL = "all"


def require_gpus(plan: KernelPlan, by: str, wanted: str) -> list[int]:
    """The indices of this machine's GPUs that a sweep is to use: ``wanted`` is how many, or ``all``; one is the current
    one. Raises UsageError, in one line, where there are fewer, or of several kinds, of which one study cannot be."""
    count = parse_gpus(wanted)
    current = require_gpu(plan, by)
    if count == 1:
        return [current]
    there = torch.cuda.device_count()
    if count is not None and count > there:
        raise UsageError(f"--gpus: found {count}, this machine shows {there}; valid: 1 to {there}, or {ALL}")
    chosen = list(range(there if count is None else count))
    kinds = {device_identity(index).model_dump_json(): torch.cuda.get_device_name(index) for index in chosen}
    if len(kinds) > 1:
        names = ", ".join(kinds.values())
        raise UsageError(f"--gpus: found GPUs of several kinds ({names}); valid: equal ones (CUDA_VISIBLE_DEVICES)")
    return chosen


def parse_gpus(wanted: str) -> int | None:
    """How many; None for all. Raises UsageError."""
    if wanted == ALL:
        return None
    if not wanted.isascii() or not wanted.isdigit() or int(wanted) < 1:
        raise UsageError(f"--gpus: found '{wanted}'; valid: a number from 1, or {ALL}")
    return int(wanted)
