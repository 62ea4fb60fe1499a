"""The GPU that a sweep needs."""

from __future__ import annotations

import torch

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan


def require_gpu(plan: KernelPlan) -> str:
    """The name of this machine's GPU. Raises UsageError, in one line, where it cannot run ``plan``."""
    wanted = " or ".join(f"{major}.{minor}" for major, minor in plan.compute_capabilities)
    need = f"sweep measures on the GPU: it needs one of compute capability {wanted} ({plan.arch})"
    if not torch.cuda.is_available():
        raise UsageError(f"{need}; this machine has none ('dsv4-tune plan' works without)")
    capability = torch.cuda.get_device_capability()
    if capability not in plan.compute_capabilities:
        raise UsageError(f"{need}; this is a {torch.cuda.get_device_name()} ({capability[0]}.{capability[1]})")
    return torch.cuda.get_device_name()
