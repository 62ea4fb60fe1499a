"""indexer_q: the indexer's queries rotated, transformed and quantised."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import indexer_q as reference
from dsv4.runtime.reference.indexer_q import IndexCode
from dsv4.runtime.weight import Quantized

_operator = Operator("indexer_q", reference.indexer_q, "q: float [T, h, D]", "cos_sin: wide [T, r]")


def indexer_q(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    code: IndexCode = "none",
    rotate_hadamard: bool = False,
    stage_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """q' [T, h, D] in ``out_dtype`` (default: that of q), or quantised by ``code``: ``"fp4"`` or ``"fp8"``.

    Args:
        q: float [T, h, D], the product of the indexer's wq_b.
        cos_sin: [T, r], ``rope_table`` of the tokens' positions.
        rotate_hadamard: apply the Hadamard transform after the rotation.
        stage_dtype: rounded to after each step. dtype: of the arithmetic.

    Raises ``ContractError``. dsv4-reference §6.1 to §6.3.
    """
    return _operator(
        q,
        cos_sin,
        code=code,
        rotate_hadamard=rotate_hadamard,
        stage_dtype=stage_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
