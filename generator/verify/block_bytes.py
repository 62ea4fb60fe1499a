"""The bytes that quantising operators write, by format and by layout of the scales, and how to compare them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dsv4.generator.verify.case import OutputLayout
from dsv4.runtime.checkpoint.swizzle import swizzle_blockscale, unswizzle_blockscale
from dsv4.runtime.reference import codes
from dsv4.runtime.reference.block_layouts import FORMATS, TILE_ROWS
from dsv4.runtime.reference.quantize import quantize_fp8, quantize_mxfp4, quantize_nvfp4
from dsv4.runtime.weight import Quantized

LAYOUTS = ("row_major", "swizzled_128x4", "m_major")


def quantized(x: torch.Tensor, format: str, input_scale: torch.Tensor | None) -> Quantized:
    """x [T, K] by the reference, on the CPU: torch divides there, elsewhere it multiplies by its inverse."""
    x = x.cpu()
    if format == "nvfp4":
        assert input_scale is not None
        return quantize_nvfp4(x, input_scale.cpu().reshape(()))
    return quantize_mxfp4(x) if format == "mxfp4" else quantize_fp8(x, FORMATS[format].block)


def output_layouts(format: str, layout: str, rows: int, columns: int, *, gap: int = 0) -> dict[str, OutputLayout]:
    """Where ``codes`` and ``scale`` lie; with ``gap`` (a multiple of 8), so many elements between their rows."""
    found = FORMATS[format]
    width, blocks = columns // 2 if found.packed else columns, columns // found.block
    scale = {
        "row_major": (rows, blocks, found.scale_dtype),
        "swizzled_128x4": (-(-rows // TILE_ROWS), TILE_ROWS * blocks, found.scale_dtype),
        "m_major": (blocks, rows, torch.float32),
    }[layout]
    stride = -(-scale[1] // 4) * 4 if layout == "m_major" else scale[1]
    return {
        "codes": OutputLayout((rows, width), (width + gap, 1), found.code_dtype),
        "scale": OutputLayout(scale[:2], (stride + gap, 1), scale[2]),
    }


def written_as(outputs: Mapping[str, OutputLayout], rows: int, columns: int) -> tuple[str, str]:
    """Format and layout of the scales of a case's ``codes`` and ``scale``, which stand for [rows, columns]."""
    codes, scale = outputs["codes"], outputs["scale"]
    for format in FORMATS:
        for layout in LAYOUTS:
            each = output_layouts(format, layout, rows, columns)
            found = (each["codes"].dtype, each["scale"].dtype, each["scale"].shape)
            if found == (codes.dtype, scale.dtype, scale.shape):
                return format, layout
    raise AssertionError("outputs of no format")


def laid_out(scale: torch.Tensor, layout: str) -> torch.Tensor:
    """Scales [T, blocks] of one byte as the kernel writes them: bytes, or the values in float32 (``m_major``).

    Bytes of a tile that belong to no row are 0.
    """
    if layout == "m_major":
        return scale.to(torch.float32).T.contiguous()
    raw = scale.view(torch.uint8)
    if layout == "row_major":
        return raw
    rows, blocks = raw.shape
    return swizzle_blockscale(raw).view(-(-rows // TILE_ROWS), TILE_ROWS * blocks)


def row_scales(scale: torch.Tensor, layout: str, rows: int) -> torch.Tensor:
    """Bytes [rows, blocks] of the scales that a kernel wrote; E8M0 codes where it wrote values."""
    scale = scale.contiguous().cpu()
    if layout == "m_major":
        return scale.T.contiguous().to(torch.float8_e8m0fnu).view(torch.uint8)
    raw = scale.view(torch.uint8)
    if layout == "row_major":
        return raw
    tiles, width = raw.shape
    return unswizzle_blockscale(raw.view(tiles * TILE_ROWS, width // TILE_ROWS), rows, width // TILE_ROWS)


def unknown_codes(x: torch.Tensor, format: str) -> torch.Tensor:
    """Which elements of x [T, K] no code stands for: E2M1 of a NaN, and of any value under a scale that is NaN."""
    if not FORMATS[format].packed:
        return torch.zeros(x.shape, dtype=torch.bool)
    wide = x.cpu().to(torch.float32)
    amax = wide.unflatten(-1, (-1, FORMATS[format].block)).abs().amax(-1)
    no_scale = amax.isnan() if format == "nvfp4" else amax.isinf()
    return wide.isnan() | no_scale.repeat_interleave(FORMATS[format].block, dim=-1)


def different_codes(got: torch.Tensor, expected: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """Which codes [T, K] differ: ``got`` and ``expected`` as they are stored. NaNs of either sign are the same."""
    got, expected = got.contiguous().cpu(), expected.cpu()
    if got.dtype == torch.uint8:
        return (unpacked(got) != unpacked(expected)) & ~unknown
    got, expected = got.view(torch.uint8), expected.view(torch.uint8)
    return (got != expected) & ~((got & 0x7F == 0x7F) & (expected & 0x7F == 0x7F))


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """E2M1 codes 0 … 15 [T, K] of bytes [T, K/2]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def values(code: torch.Tensor, scale: torch.Tensor, format: str, input_scale: torch.Tensor | None) -> torch.Tensor:
    """Float64 [T, K] of codes as they are stored and scale bytes [T, blocks]."""
    found = FORMATS[format]
    code = code.contiguous().cpu()
    plain = (
        codes.unpack_e2m1(code, dtype=torch.float64)
        if found.packed
        else code.view(torch.float8_e4m3fn).to(torch.float64)
    )
    step = scale.view(found.scale_dtype).to(torch.float64).repeat_interleave(found.block, dim=-1)
    return plain * step if input_scale is None else plain * step * float(input_scale.cpu().reshape(()))
