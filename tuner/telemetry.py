"""What the GPU says of itself while it is measured: clock, temperature, power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.tuner.protocol import GpuState


def read_gpu() -> GpuState | None:
    """The current device now, by NVML (torch asks it through the package ``nvidia-ml-py``); None where it cannot be
    asked at all. One value that this GPU does not tell is None by itself. Takes about a millisecond."""
    milliwatts = _asked(torch.cuda.power_draw)
    state = GpuState(
        sm_clock_mhz=_asked(torch.cuda.clock_rate),
        temperature_c=_asked(torch.cuda.temperature),
        power_w=None if milliwatts is None else milliwatts / 1000,
    )
    return state if any(value is not None for value in state.model_dump().values()) else None


def _asked(question: Callable[[], Any]) -> float | None:
    try:
        return float(question())
    except Exception:  # no package, no driver, or NVML's own kinds of error: what is not known is recorded as such
        return None
