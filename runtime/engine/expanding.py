"""Small models are faster on the references when their weights are dequantised once instead of at every use."""

from __future__ import annotations

import math

import torch

from dsv4.runtime.model.weights import ModelWeights, map_weights
from dsv4.runtime.weight import Weight

EXPANDED_BYTES_MAX = 4 << 30
"""Models whose dequantised weights take more keep their codes."""


def expanded_bytes(weights: ModelWeights, dtype: torch.dtype = torch.float32) -> int:
    """What the linears of ``weights`` would take as values in ``dtype``."""
    total = 0

    def count(weight: Weight) -> Weight:
        nonlocal total
        total += math.prod(weight.shape) * dtype.itemsize
        return weight

    map_weights(weights, weight=count, tensor=lambda tensor: tensor)
    return total


def expand_if_small(weights: ModelWeights, dtype: torch.dtype = torch.float32) -> ModelWeights:
    """``weights`` with all linears dequantised, where that takes at most ``EXPANDED_BYTES_MAX``; else as they are.

    The results are the same: the references dequantise to this ``dtype`` anyway, and activations stay quantised as
    each weight's format says.
    """
    if expanded_bytes(weights, dtype) > EXPANDED_BYTES_MAX:
        return weights
    return map_weights(weights, weight=lambda weight: weight.expand(dtype), tensor=lambda tensor: tensor)
