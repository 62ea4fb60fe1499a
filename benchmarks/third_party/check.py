"""Results against a reference in float64: errors, and the bounds that they are held to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
"""Relative error of one rounding to nearest (half a step at the lower end of a binade)."""
SUBNORMAL = {torch.float16: 2.0**-25, torch.float32: 2.0**-126}
"""Half a step between subnormal numbers; arithmetic in float32 may flush its own to zero."""


@dataclass(frozen=True)
class Check:
    """One output: the largest error in units of its bound; at most 1 is right."""

    name: str
    shape: tuple[int, ...]
    max_error: float
    of_bound: float


def close(name: str, got: torch.Tensor, want: torch.Tensor, *, relative: float, absolute: float = 0.0) -> Check:
    """|got − want| ≤ rounding of got's dtype · |want| + relative · |want| + absolute, element by element.

    ``relative`` and ``absolute`` are what the arithmetic in float32 may lose. NaN on one side only is infinitely wrong.
    """
    have, want = got.detach().to(torch.float64), want.detach().to(torch.float64)
    if have.shape != want.shape:
        raise ValueError(f"{name}: shape: found {tuple(have.shape)}; valid: {tuple(want.shape)}")
    error = (have - want).abs()
    bound = (ROUNDING.get(got.dtype, 0.0) + relative) * want.abs() + absolute + SUBNORMAL.get(got.dtype, 0.0)
    error[(have == want) | (have.isnan() & want.isnan())] = 0
    ratio = torch.where(error == 0, error, error / bound).nan_to_num(nan=torch.inf, posinf=torch.inf)
    largest = error.nan_to_num(nan=torch.inf)
    return Check(name, tuple(got.shape), float(largest.max()), float(ratio.max()))


def same(name: str, got: torch.Tensor, want: torch.Tensor) -> Check:
    """Equal in every element."""
    differing = int((got != want).sum())
    return Check(name, tuple(got.shape), float(differing), float("inf") if differing else 0.0)
