"""The smallest arguments that a kernel takes, made from its contract, to run it once and load its module."""

from __future__ import annotations

import math
from typing import Any

import torch

from dsv4.runtime.artifact import Argument, Manifest
from dsv4.runtime.contract import TORCH_DTYPES


def tiny_arguments(manifest: Manifest, device: torch.device) -> list[Any]:
    """Tensors of zeros (a valid index, length and logit) and scalars of 1, in contract order; a dynamic dimension has
    size 1, or its bucket's lower bound.

    An argument that the manifest calls optional is one that this variant does not have: ``None``.
    """
    sizes: dict[str, int] = {}
    for name, static in manifest.contract.dims.items():
        low = manifest.bucket.get(name, (1, None))[0]
        sizes[name] = static if static is not None else manifest.dims.get(name, max(low, 1))
    return [_tiny(argument, sizes, device) for argument in manifest.contract.arguments]


def _tiny(argument: Argument, sizes: dict[str, int], device: torch.device) -> Any:
    if argument.optional:
        return None
    if argument.kind == "scalar":
        return True if argument.dtype == "bool" else 1 if argument.dtype.startswith(("i", "u")) else 1.0
    shape = [d if isinstance(d, int) else sizes[d] for d in argument.shape]
    dtype = TORCH_DTYPES[argument.dtype]
    return torch.zeros(math.prod(shape) * dtype.itemsize, dtype=torch.uint8, device=device).view(dtype).view(shape)
