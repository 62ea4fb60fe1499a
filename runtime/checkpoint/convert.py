"""Exact conversions of MXFP4 weights to the formats of other kernels (dsv4-reference §9.3, §9.4).

Both only move powers of two between codes and scales. Where that cannot be done without rounding they refuse.
"""

from __future__ import annotations

import torch

from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.reference.codes import unpack_e2m1
from dsv4.runtime.weight import FP8_BLOCK, MXFP4_BLOCK, NVFP4_BLOCK, Format, Weight

FP8_HEADROOM = 6
"""The largest scale of a block counts as 2^6 of its FP8 scale: 6 · 2^6 = 384 is within E4M3's 448, 6 · 2^7 is not."""

NVFP4_HEADROOM = 8
"""The largest scale of a matrix becomes E4M3's 2^8, its largest power of two."""

_NVFP4_LEAST = -9  # the exponent of E4M3's least subnormal number
_E8M0_BIAS, _E8M0_NAN = 127, 255


def mxfp4_to_fp8(weight: Weight) -> Weight:
    """MXFP4 [.., out, in], out and in multiples of 128, as FP8 with one E8M0 scale for each 128 × 128, exactly.

    The FP8 scale is the block's largest E8M0 scale / 2^6. Raises ``CheckpointError`` where a code times its scale has
    no E4M3 code (a scale too far below the largest one of its block), or a scale is NaN.
    """
    exponents = _exponents(weight)
    rows, columns = weight.shape[-2:]
    if rows % FP8_BLOCK or columns % FP8_BLOCK:
        raise CheckpointError(f"weight: found {list(weight.shape)}; valid: rows and columns a multiple of {FP8_BLOCK}")
    per_block = FP8_BLOCK // MXFP4_BLOCK
    tiles = exponents.unflatten(-1, (-1, per_block)).unflatten(-3, (-1, FP8_BLOCK))  # [.., R/128, 128, C/128, 4]
    scale = (tiles.amax(dim=(-3, -1)) - FP8_HEADROOM).clamp(min=-_E8M0_BIAS)
    shift = (tiles - scale[..., :, None, :, None]).flatten(-2).flatten(-3, -2)  # [.., out, in/32]
    values = unpack_e2m1(weight.codes) * _power_of_two(shift).repeat_interleave(MXFP4_BLOCK, dim=-1)
    codes = values.to(torch.float8_e4m3fn)
    if bool((codes.to(torch.float32) != values).any()):
        raise CheckpointError(
            f"scale: found 2^{int(FP8_HEADROOM - shift.min())} between the scales of one 128 × 128 block; valid: close "
            "enough that every value has an E4M3 code"
        )
    return Weight(Format.FP8_BLOCK, codes, _e8m0(scale))


def mxfp4_to_nvfp4(weight: Weight) -> Weight:
    """MXFP4 [.., out, in] as NVFP4, exactly: the codes stay, every scale becomes two E4M3 ones.

    ``scale_2`` = 2^(largest exponent of the matrix − 8), one a matrix. Raises ``CheckpointError`` where a scale is more
    than 2^17 below the largest, since E4M3's powers of two run from 2^8 down to 2^-9, or where a scale is NaN. The
    scale of 32 zeros (which the quantiser makes as small as it can be) does not count.
    """
    exponents = _exponents(weight)
    outer = exponents.amax(dim=(-2, -1)) - NVFP4_HEADROOM
    shift = exponents - outer[..., None, None]
    zeros = ((weight.codes & 0x77) == 0).unflatten(-1, (-1, MXFP4_BLOCK // 2)).all(dim=-1)
    shift = torch.where(zeros, shift.clamp(min=_NVFP4_LEAST), shift)
    if bool((shift < _NVFP4_LEAST).any()):
        spread = int(NVFP4_HEADROOM - shift.min())
        raise CheckpointError(f"scale: found 2^{spread} between the scales of a matrix; valid: at most 2^17")
    scale = _power_of_two(shift).to(torch.float8_e4m3fn).repeat_interleave(MXFP4_BLOCK // NVFP4_BLOCK, dim=-1)
    return Weight(Format.NVFP4, weight.codes, scale, _power_of_two(outer))


def _exponents(weight: Weight) -> torch.Tensor:
    """The powers of two of an MXFP4 weight's scales, int32 [.., out, in/32]."""
    if weight.format is not Format.MXFP4 or weight.expanded or weight.scale is None:
        raise CheckpointError(f"weight: found {weight.format.value}; valid: mxfp4")
    raw = weight.scale.view(torch.uint8)
    if bool((raw == _E8M0_NAN).any()):
        raise CheckpointError("scale: found NaN (E8M0 code 255); valid: a power of two")
    return raw.to(torch.int32) - _E8M0_BIAS


def _power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^exponents in float32, exactly (``exp2`` need not be); what float32 cannot hold becomes 0."""
    return ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64).to(torch.float32)


def _e8m0(exponents: torch.Tensor) -> torch.Tensor:
    return (exponents + _E8M0_BIAS).to(torch.uint8).view(torch.float8_e8m0fnu)
