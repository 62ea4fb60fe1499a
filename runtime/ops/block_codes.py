"""Outputs of the quantising operators: codes and scales by rule."""

from __future__ import annotations

import torch

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
