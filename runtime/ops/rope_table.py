"""rope_table: cosines and sines of the positions of a step, for all layers with the same frequencies."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import rope as reference

_operator = Operator("rope_table", reference.rope_table, "positions: int [T]", "frequencies: f32 [h]")


def rope_table(
    positions: torch.Tensor, frequencies: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """cos ‖ sin [T, 2h] in ``dtype`` of positions [T] (i64 or i32) times frequencies f32 [h].

    Raises ``ContractError``. dsv4-reference §3.3.
    """
    return _operator(positions, frequencies, dtype=dtype)
