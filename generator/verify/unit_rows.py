"""Rows that RMS norm leaves as they are, to the bit: what a fused kernel hands to its quantiser is then known."""

from __future__ import annotations

import math

import torch

WIDTH, FREE = 512, 448
UNIT = 1 / 32
"""Numbers are multiples of it up to 8: eight bits, which bf16 has, and sums of squares are exact in float32."""
LARGEST = 255
LIMITS = (96, 1, 0, 40, 3, 17, 64)
"""The largest multiple of each block of 64."""


def unit_rows(count: int, generator: torch.Generator) -> torch.Tensor:
    """bf16 [count, 512] with a mean of squares of exactly 1; blocks of other magnitudes in the first 448 columns."""
    return torch.stack([_row(generator) for _ in range(count)]).mul(UNIT).to(torch.bfloat16)


def _row(generator: torch.Generator) -> torch.Tensor:
    limits = torch.tensor(LIMITS)[torch.randperm(len(LIMITS), generator=generator)].repeat_interleave(64)
    drawn = torch.randint(-LARGEST, LARGEST + 1, (FREE,), generator=generator)
    free = (drawn * limits / LARGEST).round().long()
    left = WIDTH * round(1 / UNIT**2) - int(free.square().sum())
    size = math.isqrt(left // (WIDTH - FREE))
    rest = torch.full((WIDTH - FREE - 4,), size)
    last = four_squares(left - len(rest) * size**2)
    return torch.cat((free, rest, torch.tensor(last))).float()


def four_squares(number: int) -> tuple[int, int, int, int]:
    """Four numbers whose squares sum to ``number`` (Lagrange), as equal as they can be with the largest first."""
    for a in range(math.isqrt(number // 4), math.isqrt(number) + 1):
        for b in range(a, -1, -1):
            left = number - a * a - b * b
            for c in range(min(b, math.isqrt(left)) if left >= 0 else -1, -1, -1):
                d = math.isqrt(left - c * c)
                if d * d == left - c * c:
                    return a, b, c, d
    raise ValueError(f"number: found {number}; valid: 0 or more")
