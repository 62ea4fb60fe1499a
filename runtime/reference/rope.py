"""Rotary positions: frequencies with and without YaRN, the cosines and sines of a step, and the rotation (§3.3, §3.4).

The angle of position p and pair i is, by definition, the float32 product of p and the float32 frequency f_i, as the
official table has it; only its cosine and sine are evaluated in the dtype asked for. Near p = 2²⁰ the product rounded
to float32 is up to 0.03 rad from the exact one, and the model was trained with the rounded one.
"""

from __future__ import annotations

import math

import torch


def rope_frequencies(
    theta: float,
    rotary_dim: int,
    *,
    factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    original_positions: int = 0,
) -> torch.Tensor:
    """f32 [rotary_dim / 2] on the CPU: θ^(−2i/r), stretched by YaRN where ``original_positions`` is not 0.

    Pairs that turn more than ``beta_fast`` times within the original positions stay, those that turn less than
    ``beta_slow`` times are slowed by ``factor``, in between the two are mixed linearly in i.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    if not original_positions:
        return frequencies

    def pair_of(turns: float) -> float:
        return rotary_dim * math.log(original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(beta_fast)), 0)
    high = min(math.ceil(pair_of(beta_slow)), rotary_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    return frequencies / factor * (1 - kept) + frequencies * kept


def rope_table(
    positions: torch.Tensor, frequencies: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """cos ‖ sin [N, r] in ``dtype`` for integer positions [N] and f32 frequencies [r/2]; columns 0 … r/2−1 cosines."""
    angles = (positions[:, None].to(torch.float32) * frequencies).to(dtype)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rotate(
    x: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    inverse: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x [N, .., D] with its last r dimensions rotated, pairs (2i, 2i+1) as complex numbers times e^(±i·angle).

    ``cos_sin`` [N, r] is one row for each first index of x; ``inverse`` takes the conjugate. Computed in ``dtype``;
    returns a new tensor in ``out_dtype`` (default: that of x).
    """
    rotary = cos_sin.shape[-1]
    kept, turned = x.to(dtype).split((x.shape[-1] - rotary, rotary), dim=-1)
    table = cos_sin.to(dtype).view(cos_sin.shape[0], *(1,) * (x.ndim - 2), 2, rotary // 2)
    cos, sin = table.unbind(dim=-2)
    if inverse:
        sin = -sin
    even, odd = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return torch.cat((kept, pairs.flatten(-2)), dim=-1).to(out_dtype or x.dtype)
