"""Outputs of the quantising operators: codes and scales by rule, or by format and layout."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.block_layouts import FORMATS, M_MAJOR_MULTIPLE, TILE_ROWS
from dsv4.runtime.reference.experts import Rule

BLOCK: dict[Rule, int] = {"fp8_128": 128, "fp8_32": 32, "nvfp4": 16}
"""Columns that share a scale."""


def empty_codes(x: torch.Tensor, rule: Rule, columns: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [.., columns] (two a byte with nvfp4) and scales [.., columns / block] for rows like x's, not set.

    ``columns``: those of x where left out.
    """
    *lead, own = x.shape
    width = columns or own
    if rule == "nvfp4":
        codes = x.new_empty((*lead, width // 2), dtype=torch.uint8)
        return codes, x.new_empty((*lead, width // BLOCK[rule]), dtype=torch.float8_e4m3fn)
    codes = x.new_empty((*lead, width), dtype=torch.float8_e4m3fn)
    return codes, x.new_empty((*lead, width // BLOCK[rule]), dtype=torch.float8_e8m0fnu)


def empty_blocks(x: torch.Tensor, columns: int, format: str, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales as ``block_layouts`` has them, for rows [T, ``columns``] on the device of x [T, ..], not set."""
    rows, found = x.shape[0], FORMATS[format]
    blocks = columns // found.block
    codes = x.new_empty((rows, columns // 2 if found.packed else columns), dtype=found.code_dtype)
    if layout == "m_major":
        length = -(-rows // M_MAJOR_MULTIPLE) * M_MAJOR_MULTIPLE
        return codes, x.new_empty((blocks, length), dtype=torch.float32)[:, :rows]
    shape = (rows, blocks) if layout == "row_major" else (-(-rows // TILE_ROWS), TILE_ROWS * blocks)
    return codes, x.new_empty(shape, dtype=found.scale_dtype)


def tile_sizes(rows: int, layout: str) -> dict[str, int]:
    """The dynamic sizes of a kernel for ``rows``: with tiles of scales as many as there are."""
    return {"T": rows, "P": -(-rows // TILE_ROWS) if layout == "swizzled_128x4" else 0}
