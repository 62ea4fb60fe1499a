"""Measures of error, and rounding to bf16 done exactly."""

from __future__ import annotations

import math

import torch


def round_to_bf16(values: torch.Tensor) -> torch.Tensor:
    """Float64 rounded to the nearest bf16, ties to even, with one rounding only.

    ``values.to(bfloat16)`` goes through float32 and so may round twice; here the first step rounds to odd, which keeps
    the information that the second step needs (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
    """
    single = values.to(torch.float32)
    back = single.to(torch.float64)
    bits = single.contiguous().view(torch.int32)
    inexact = torch.isfinite(values) & torch.isfinite(single) & (back != values)
    bits = torch.where(inexact & (back.abs() > values.abs()), bits - 1, bits)  # towards zero: one step in magnitude
    bits = torch.where(inexact, bits | 1, bits)
    return bits.view(torch.float32).to(torch.bfloat16)


def bf16_ulps_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many bf16 values lie between ``a`` and ``b`` (int32; two NaNs are 0 apart, one NaN is 65535 apart)."""

    def ordinal(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    apart = (ordinal(a) - ordinal(b)).abs()
    nan_a, nan_b = a.isnan(), b.isnan()
    apart = torch.where(nan_a & nan_b, 0, apart)
    return torch.where(nan_a ^ nan_b, 0xFFFF, apart)


def cosine(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Cosine of the angle of two float64 tensors; 1.0 where both are zero or empty, NaN where one is not finite."""
    norms = float(got.norm() * expected.norm())
    if norms == 0.0:
        return 1.0 if float((got - expected).norm()) == 0.0 else 0.0
    return float((got * expected).sum()) / norms


def rel_l2(got: torch.Tensor, expected: torch.Tensor) -> float:
    """‖got − expected‖ / ‖expected‖; 0.0 where both are zero or empty, infinite where only ``expected`` is zero."""
    error, norm = float((got - expected).norm()), float(expected.norm())
    if norm == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / norm


def row_rel_l2(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """``rel_l2`` of each row (the last axis), flat over the other axes. NaN counts as infinite."""
    error = (got - expected).norm(dim=-1).flatten()
    norm = expected.norm(dim=-1).flatten()
    ratio = torch.where(norm > 0, error / norm, torch.where(error > 0, math.inf, 0.0))
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf)
