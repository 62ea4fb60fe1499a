"""moe_combine_rows: the routes of a token, taken by an index, and the shared expert summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.moe_combine import COLUMNS_MULTIPLE
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import moe_combine_rows as reference


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "index", values["index"], -1, values["rows"].shape[0])


def _serves(
    rows: torch.Tensor,
    index: torch.Tensor,
    shared: torch.Tensor,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Served | None:
    (tokens, k), (count, columns) = index.shape, rows.shape
    narrow = are(torch.bfloat16, rows, shared) and out_dtype in (None, torch.bfloat16)
    if not narrow or dtype != torch.float32 or columns % COLUMNS_MULTIPLE:
        return None
    return Served({"k": k, "d": columns}, {"T": tokens, "S": count}, {"gathered": True}, op="moe_combine")


def _call(
    kernel: Callable[..., None], rows: torch.Tensor, index: torch.Tensor, shared: torch.Tensor, **_: object
) -> torch.Tensor:
    out = torch.empty_like(shared, memory_format=torch.contiguous_format)
    kernel(None, rows, index, shared, out)
    return out


_operator = Operator(
    "moe_combine_rows",
    reference.moe_combine_rows,
    "rows: float [S, d]",
    "index: i32 [T, k]",
    "shared: float [T, d]",
    dynamic=("T", "S"),
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
)


def moe_combine_rows(
    rows: torch.Tensor,
    index: torch.Tensor,
    shared: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Σ_i rows[index[t, i]] + shared[t], [T, d] in ``out_dtype`` (default: that of shared), summed in ``dtype``.

    Args:
        rows: float [S, d], already weighted, as a grouped product leaves them.
        index: i32 [T, k], ``route_row`` of ``expert_offsets``: −1 adds nothing. Rows from 0 to S − 1 are checked in
            debug mode only; a kernel reads beside the tensor for others.
        shared: float [T, d].

    Raises ``ContractError``. dsv4-reference §9.2.
    """
    return _operator(rows, index, shared, dtype=dtype, out_dtype=out_dtype)
