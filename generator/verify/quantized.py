"""How far codes, scales and rounded values are from float64 answers: what the judges of quantising operators share.

A kernel computes in float32 and rounds once, so a code is the right one or, where the float32 value lies on the other
side of the middle between two codes, its neighbour. A scale is read off the block's largest magnitude: it is the right
one unless that magnitude lies so near the place where the scale doubles that float32's error crosses it.
"""

from __future__ import annotations

import math

import torch

from dsv4.runtime.reference import codes
from dsv4.runtime.reference.quantize import FP8_FLOOR, MXFP4_FLOOR

CODE_SHARE = 1e-3
"""Share of the codes that may be one step away from the right one."""
AMAX_ERROR = 2.0**-22
"""Relative error of a float32 magnitude (two units in its last place) by which a scale may be excused."""

LIMITS = {"e4m3": (FP8_FLOOR, codes.E4M3_MAX), "e2m1": (MXFP4_FLOOR, codes.E2M1_MAX)}
"""The least amax and the largest value, by code."""


def scale_range(
    values: torch.Tensor, code: str, *, floor: float | None = None, error: float = AMAX_ERROR
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest right E8M0 code (int32) of blocks ``values`` float64 [.., block]; mostly one number."""
    least, largest = LIMITS[code]
    amax = values.abs().amax(dim=-1)

    def of(factor: float) -> torch.Tensor:
        wide = (amax * factor).to(torch.float32).clamp(min=least if floor is None else floor) * (1 / largest)
        return codes.power_of_two_ceil(wide).view(torch.uint8).to(torch.int32)

    low, high = of(1 - error), of(1 + error)
    return torch.minimum(low, high), torch.maximum(low, high)


def code_steps(got: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, code: str) -> torch.Tensor:
    """Steps (int32) from the codes ``got`` [.., block] to those of ``values`` / ``scale`` (float64 [.., block], [..]).

    ``got`` holds E4M3 bytes, or E2M1 codes 0 … 15 unpacked, as integers. +0 and −0 are no step apart, nor are two
    NaNs; a NaN and a number are 1000 apart. E2M1 has no NaN: there every code is right for one.
    """
    scaled = values / scale[..., None]
    if code == "e4m3":
        wanted = scaled.clamp(-codes.E4M3_MAX, codes.E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
        apart = (_ordinal(got, 0x80) - _ordinal(wanted, 0x80)).abs()
        nan = (got.to(torch.int32) & 0x7F) == 0x7F
        apart = torch.where(nan & scaled.isnan(), 0, apart)
        return torch.where(nan ^ scaled.isnan(), 1000, apart)
    apart = (_ordinal(got, 8) - _ordinal(codes.encode_e2m1(scaled), 8)).abs()
    return torch.where(scaled.isnan(), 0, apart)


def _ordinal(code: torch.Tensor, sign: int) -> torch.Tensor:
    wide = code.to(torch.int32)
    return torch.where(wide >= sign, sign - wide, wide)


def scale_values(byte: torch.Tensor) -> torch.Tensor:
    """E8M0 bytes (any integer dtype) as float64; 255 is NaN."""
    exponent = byte.to(torch.float64) - 127
    return torch.where(byte.to(torch.int32) == 255, math.nan, torch.exp2(exponent))


def float32_error(values: torch.Tensor, *, rotary: int = 0, relative: float = 2.0**-20) -> torch.Tensor:
    """What float32 may be off ``values`` (float64 [.., n]): ``relative``, of the pair's length in the last ``rotary``.

    The two products of a rotated number may cancel; their errors do not.
    """
    size = values.abs()
    if rotary:
        length = values[..., -rotary:].unflatten(-1, (-1, 2)).norm(dim=-1).repeat_interleave(2, dim=-1)
        size = torch.cat((size[..., :-rotary], length), dim=-1)
    return relative * size


def step_findings(name: str, steps: torch.Tensor, what: str, *, share: float = CODE_SHARE) -> list[str]:
    """Findings where some of ``steps`` are more than 1, or more than ``share`` of them are not 0."""
    found = []
    if wrong := int((steps > 1).sum()):
        place = (steps > 1).nonzero()[0].tolist()
        found.append(f"{name}: {wrong} of {steps.numel()} {what}s are more than one step off, the first at {place}")
    inexact, allowed = int((steps > 0).sum()), math.ceil(share * steps.numel())
    if inexact > allowed:
        found.append(f"{name}: {inexact} of {steps.numel()} {what}s are one step off; {allowed} may be so")
    return found


def scale_findings(name: str, got: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> list[str]:
    """A finding where E8M0 codes ``got`` are not in low … high (same shape)."""
    wide = got.to(torch.int32)
    wrong = (wide < low) | (wide > high)
    if not wrong.any():
        return []
    place = wrong.nonzero()[0].tolist()
    at = tuple(place)
    return [
        f"{name}: {int(wrong.sum())} of {wrong.numel()} scales are wrong, the first at {place}: code {int(wide[at])} "
        f"instead of {int(low[at])}"
    ]
