"""Outputs made at the least cost on the host.

``torch.empty_like`` and its relatives find their overload and pass torch's dispatcher, 2 to 3 µs each beside a GPU.
``fast_empty`` is the allocation that torch's own compiled code makes: the shape, the strides, the dtype and nothing
else. It serves the current CUDA device and knows nothing of modes or transforms, so it may be called only where a
kernel may be, and only for a CUDA device that ``current_device()`` names; elsewhere operators use the public functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _no_device() -> int:
    """A torch without CUDA, or without these two functions: no tensor is on this device."""
    return -2


def _without_cuda(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype)


def _found() -> tuple[Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor], Callable[[], int]]:
    """The allocator and the function that gives the current device's index."""
    guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    allocate = getattr(guards, "_empty_strided_cuda", None)
    index = getattr(torch._C, "_cuda_getDevice", None)
    if allocate is None or index is None:
        return _without_cuda, _no_device
    return allocate, index


fast_empty, current_device = _found()
