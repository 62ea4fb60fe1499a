"""What a call of a public function gave and wrote, as numbers, and whether two calls came out the same."""

from __future__ import annotations

from typing import Any

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.pages import read_rows
from dsv4.runtime.weight import Quantized


def values(result: Any, arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors of the result, dequantised, and the rows of the pools given and of a compressor's state, but for the
    scratch row."""
    parts = result if isinstance(result, tuple) and not isinstance(result, Quantized) else (result,)
    found = [part.dequantize() if isinstance(part, Quantized) else part for part in parts if part is not None]
    pools = [part for part in arguments if isinstance(part, Pool)]
    found += [read_rows(pool, torch.arange(pool.rows - 1, device=pool.device)) for pool in pools]
    if isinstance(arguments[-1], Compression):
        found.append(arguments[-3][:-1].clone())
    return [each.float() if each.is_floating_point() else each for each in found]


def close(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """As many tensors, of the same shapes, each within a relative L2 error of 4e-3; whole numbers are equal, but
    for 2 % of bytes."""
    assert len(got) == len(expected) > 0
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        if one.dtype == torch.uint8:  # two codes a byte, of which a few are a step off
            assert float((one != other).float().sum()) <= 0.02 * one.numel()
        elif not one.is_floating_point():
            assert torch.equal(one, other)
        if not one.is_floating_point() or not one.numel():
            continue
        error, size = float((one - other).norm()), float(other.norm())
        assert error <= 4e-3 * size, f"{error} of {size}: a step of a code here and there is less"
