"""indexer_scores: how much each query wants each compressed entry."""

from __future__ import annotations

from typing import Any

import torch

from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.pool import Pool
from dsv4.runtime.reference import indexer_scores as reference
from dsv4.runtime.weight import Quantized


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "rows", values["rows"], -1, values["pool"].rows - 1)
    in_range(op, "visible", values["visible"], 0, values["rows"].shape[1] + 1)


_operator = Operator(
    "indexer_scores",
    reference.indexer_scores,
    "q: activation [T, h, D]",
    "weights: float [T, h]",
    "pool: pool [D]",
    "rows: int [S, E]",
    "visible: int [T]",
    "lengths: lengths [S, T]",
    dynamic=("T", "S", "E"),
    check_values=_check_values,
)


def indexer_scores(
    q: torch.Tensor | Quantized,
    weights: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    visible: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scale: float = 1.0,
    folded: bool = False,
    stage_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Scores [T, E] in ``dtype``, −∞ for entries that a query may not see.

    Args:
        q: [T, h, D] from ``indexer_q``. weights: float [T, h], the product of weights_proj.
        folded: the queries and weights are those of ``indexer_q_folded``: a query's one scale is in its weight.
        pool: the indexer's keys. rows: int [S, E], the entries of each sequence as rows of the pool.
        visible: int [T], how many entries each query may see.
        lengths: tokens of each of the S sequences; their sum is T.
        scale: multiplies the weights. stage_dtype: rounded to after each step. dtype: of the arithmetic.

    Raises ``ContractError``. dsv4-reference §6.4.
    """
    return _operator(
        q, weights, pool, rows, visible, lengths, scale=scale, folded=folded, stage_dtype=stage_dtype, dtype=dtype
    )
