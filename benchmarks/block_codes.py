"""What the benchmarks of quantising operators share: their outputs, the formula for torch, and reading the codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BLOCK = {"fp8_128": 128, "fp8_32": 32, "mxfp4": 32, "nvfp4": 16}
SCALE_LAYOUTS = {"fp8_128": "row_major", "fp8_32": "row_major", "mxfp4": "swizzled_128x4", "nvfp4": "swizzled_128x4"}
"""The layout that is measured, by format."""
TILE_ROWS = 128


def packed(format: str) -> bool:
    return format in ("mxfp4", "nvfp4")


def code_bytes(format: str, rows: int, columns: int) -> int:
    return rows * columns // 2 if packed(format) else rows * columns


def scale_count(format: str, columns: int) -> int:
    """Scales of a row."""
    return columns // BLOCK[format]


def quantized_outputs(format: str, layout: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """``codes`` and ``scale`` full of ones: codes and scales that are no result (NaN where the dtype has it)."""
    import torch

    blocks = scale_count(format, columns)
    width = columns // 2 if packed(format) else columns
    shape = (rows, blocks) if layout == "row_major" else (-(-rows // TILE_ROWS), TILE_ROWS * blocks)
    codes = torch.full((rows, width), 0xFF, dtype=torch.uint8, device="cuda")
    scale = torch.full(shape, 0xFF, dtype=torch.uint8, device="cuda")
    return {
        "codes": codes if packed(format) else codes.view(torch.float8_e4m3fn),
        "scale": scale.view(torch.float8_e4m3fn if format == "nvfp4" else torch.float8_e8m0fnu),
    }


def dequantized(format: str, output: Any, rows: int, input_scale: torch.Tensor) -> torch.Tensor:
    """Float64 values of (codes, scale) as a kernel wrote them, scales row-major or in tiles of 128 × 4."""
    import torch

    codes, scale = output
    wide = scale.double()
    if scale.shape[0] != rows or scale.shape[1] != codes.shape[1] * (2 if packed(format) else 1) // BLOCK[format]:
        groups = scale.shape[1] // (TILE_ROWS * 4)
        tiles = wide.view(-1, groups, 32, 4, 4)  # tile, group of 4 blocks, row % 32, row / 32, block % 4
        wide = tiles.permute(0, 3, 2, 1, 4).reshape(-1, groups * 4)[:rows]
    if packed(format):
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64, device=codes.device)
        table = torch.cat((table, -table))
        plain = table[torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2).long()]
    else:
        plain = codes.double()
    values = plain * wide.repeat_interleave(BLOCK[format], dim=-1)
    return values * input_scale.double() if format == "nvfp4" else values


def error_of_codes(format: str, values: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Relative L2 error of float64 ``values``; ValueError where it is more than codes of this format have."""
    rel_l2 = ((values - expected).norm() / expected.norm()).item()
    valid = 0.12 if format in ("mxfp4", "nvfp4") else 0.03
    if not rel_l2 <= valid:
        raise ValueError(f"relative L2 error {rel_l2:.3g}; valid: at most {valid}")
    return {"rel_l2": rel_l2}


def fp8_formula(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 with a power of two as f32 for each 128 columns, in torch's own arithmetic."""
    import torch

    blocks = x.float().unflatten(-1, (-1, 128))
    amax = blocks.abs().amax(-1).clamp(min=1e-4)
    bits = (amax * (1 / 448)).view(torch.int32)
    scale = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    codes = (blocks / scale[..., None]).clamp(-448, 448).flatten(-2).to(torch.float8_e4m3fn)
    return codes, scale
