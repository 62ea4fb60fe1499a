"""Which device this is, as far as it matters for what was measured on one."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from dsv4.runtime.tuned import Device

UNKNOWN = "unknown"
_VERSION_BYTES = 96


@lru_cache(maxsize=64)
def device_identity(index: int) -> Device:
    """The CUDA device ``index`` of this process; a version that cannot be found out is ``"unknown"``."""
    properties = torch.cuda.get_device_properties(index)
    return Device(
        name=properties.name,
        memory_bytes=properties.total_memory,
        sms=properties.multi_processor_count,
        driver=driver_version(),
        cuda=str(torch.version.cuda or UNKNOWN),
    )


@lru_cache(maxsize=1)
def driver_version() -> str:
    """The NVIDIA driver's version, such as 580.95.05: from NVML, else from the kernel module."""
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            text = ctypes.create_string_buffer(_VERSION_BYTES)
            found = nvml.nvmlSystemGetDriverVersion(text, _VERSION_BYTES) == 0
            nvml.nvmlShutdown()
            if found:
                return text.value.decode(errors="replace")
    with suppress(OSError):
        match = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        if match:
            return match[1]
    return UNKNOWN
