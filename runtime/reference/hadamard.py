"""The normalised Walsh–Hadamard transform in Sylvester order (dsv4-reference §6.2)."""

from __future__ import annotations

import torch


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """y = H x · D^(−½) over the last dimension D, a power of two, in the dtype of x, which should be wide.

    Its own inverse. Done in log2(D) butterflies.
    """
    width = x.shape[-1]
    y, half = x, 1
    while half < width:
        pairs = y.unflatten(-1, (width // (2 * half), 2, half))
        low, high = pairs.unbind(dim=-2)
        y = torch.stack((low + high, low - high), dim=-2).flatten(-3)
        half *= 2
    return y * width**-0.5
