"""Inputs of operators that rotate: tables of cosines and sines, rows with gaps between them."""

from __future__ import annotations

import math

import torch

ROTARY = 64


def table(tokens: int, generator: torch.Generator) -> torch.Tensor:
    """cos ‖ sin, float32 [tokens, 64], of angles anywhere; the first token's are 0."""
    angles = 2 * math.pi * torch.rand(tokens, ROTARY // 2, generator=generator, device=generator.device)
    angles[:1] = 0.0
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def gapped(
    values: torch.Tensor, gap: int, device: torch.device, *, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """``values`` in ``dtype`` with ``gap`` NaN after each row of the last axis, which nobody may read."""
    padded = torch.nn.functional.pad(values.to(dtype), (0, gap), value=math.nan)
    return padded.to(device)[..., : values.shape[-1]]
