"""Quantisation of activations and weights: FP8 with power-of-two scales, MXFP4, NVFP4 (dsv4-reference §4.2, §6.3, §9).

Scales come from float32 values whatever dtype the values have, since powers of two are read off the float32 bits.
Values are divided by their scale in float32, in float64 if they come so, and rounded once to the code.
"""

from __future__ import annotations

import torch

from dsv4.runtime.reference import codes
from dsv4.runtime.reference.codes import E2M1_MAX, E4M3_MAX
from dsv4.runtime.weight import FP8_BLOCK, MXFP4_BLOCK, NVFP4_BLOCK, Format, Quantized, Weight

FP8_FLOOR = 1e-4
"""The least amax that a block counts with, in the official code."""
MXFP4_FLOOR = 6.0 * 2.0**-126


def quantize_fp8(x: torch.Tensor, block: int = 128, *, floor: float = FP8_FLOOR) -> Quantized:
    """x [.., K] as E4M3 codes and an E8M0 scale for each ``block`` columns; the last block may be cut.

    s = 2^⌈log2(max(amax, floor) / 448)⌉, code = RN(clamp(x / s, ±448)).
    """
    wide, amax = _blocks(x, block)
    scale = codes.power_of_two_ceil(amax.to(torch.float32).clamp(min=floor) * (1 / E4M3_MAX))
    scaled = (wide / scale.to(wide.dtype)[..., None]).clamp(-E4M3_MAX, E4M3_MAX)
    return Quantized(scaled.flatten(-2)[..., : x.shape[-1]].to(torch.float8_e4m3fn).contiguous(), scale, block)


def quantize_mxfp4(x: torch.Tensor) -> Quantized:
    """x [.., K], K a multiple of 32, as packed E2M1 codes and an E8M0 scale for each 32 columns.

    s = 2^⌈log2(amax / 6)⌉ with amax ≥ 6 · 2⁻¹²⁶, code = RN(clamp(x / s, ±6)).
    """
    wide, amax = _blocks(x, MXFP4_BLOCK)
    scale = codes.power_of_two_ceil(amax.to(torch.float32).clamp(min=MXFP4_FLOOR) * (1 / E2M1_MAX))
    code = codes.encode_e2m1(wide / scale.to(wide.dtype)[..., None])
    return Quantized(codes.pack_e2m1(code.flatten(-2)), scale, MXFP4_BLOCK)


def quantize_nvfp4(x: torch.Tensor, scale_2: torch.Tensor) -> Quantized:
    """x [.., K], K a multiple of 16, as packed E2M1 codes, an E4M3 scale for each 16 columns and the given f32 one.

    sf = RN_E4M3(amax / 6 / scale_2), code = RN(clamp(x / (sf · scale_2), ±6)); a block whose sf is 0 has zero codes.
    ``scale_2`` is a scalar tensor: a weight's amax / (6 · 448), or the calibrated ``input_scale``.
    """
    wide, amax = _blocks(x, NVFP4_BLOCK)
    outer = scale_2.to(wide.dtype)
    scale = (amax / E2M1_MAX / outer).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    step = (scale.to(wide.dtype) * outer)[..., None]
    code = codes.encode_e2m1(torch.where(step == 0, 0.0, wide / step))
    return Quantized(codes.pack_e2m1(code.flatten(-2)), scale, NVFP4_BLOCK, scale_2)


def fake_quantize_fp8(x: torch.Tensor, block: int) -> torch.Tensor:
    """x rounded to what FP8 with a scale for each ``block`` columns can say, in the dtype of x (FQ64, §4.3)."""
    return quantize_fp8(x, block).dequantize(_wide(x)).to(x.dtype)


def fake_quantize_mxfp4(x: torch.Tensor) -> torch.Tensor:
    """x rounded to what MXFP4 can say, in the dtype of x (§6.3)."""
    return quantize_mxfp4(x).dequantize(_wide(x)).to(x.dtype)


def fp8_weight(values: torch.Tensor) -> Weight:
    """W [.., out, in] as E4M3 with an E8M0 scale for each 128 × 128, by the rule of the activations' scales."""
    rows, columns = values.shape[-2:]
    wide = values.to(torch.float32)
    padded = torch.nn.functional.pad(wide, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    tiles = padded.unflatten(-1, (-1, FP8_BLOCK)).unflatten(
        -3, (-1, FP8_BLOCK)
    )  # [.., rows/128, 128, columns/128, 128]
    amax = tiles.abs().amax(dim=(-3, -1))
    scale = codes.power_of_two_ceil(amax.clamp(min=FP8_FLOOR) * (1 / E4M3_MAX))
    scaled = (tiles / scale.to(torch.float32)[..., :, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    code = scaled.flatten(-2).flatten(-3, -2)[..., :rows, :columns].to(torch.float8_e4m3fn)
    return Weight(Format.FP8_BLOCK, code.contiguous(), scale)


def mxfp4_weight(values: torch.Tensor) -> Weight:
    """W [.., out, in] as MXFP4."""
    quantized = quantize_mxfp4(values.to(torch.float32))
    return Weight(Format.MXFP4, quantized.codes, quantized.scale)


def nvfp4_weight(values: torch.Tensor, *, input_scale: torch.Tensor | None = None) -> Weight:
    """W [.., out, in] as NVFP4, with one ``scale_2`` a matrix."""
    wide = values.to(torch.float32)
    outer = (wide.abs().amax(dim=(-2, -1)) / (E2M1_MAX * E4M3_MAX)).clamp(min=2.0**-126)
    if wide.ndim == 2:
        quantized = quantize_nvfp4(wide, outer)
        return Weight(Format.NVFP4, quantized.codes, quantized.scale, outer, input_scale)
    each = [quantize_nvfp4(matrix, scale) for matrix, scale in zip(wide, outer, strict=True)]
    code, scale = torch.stack([part.codes for part in each]), torch.stack([part.scale for part in each])
    return Weight(Format.NVFP4, code, scale, outer, input_scale)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _blocks(x: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x as [.., K/block, block] in float32 or float64, padded with zeros, and the largest magnitude of each block."""
    wide = torch.nn.functional.pad(x.to(_wide(x)), (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    return wide, wide.abs().amax(dim=-1)
