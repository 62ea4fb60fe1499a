"""sparse_attention: every query over its own rows of the window cache and of the compressed cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops import sparse_attention_decode
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.pool import Pool
from dsv4.runtime.reference import sparse_attention as reference


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "window_rows", values["window_rows"], -1, values["window"].rows - 1)
    if values["compressed"] is not None:
        in_range(op, "compressed_rows", values["compressed_rows"], -1, values["compressed"].rows - 1)


def _serves(
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool | None,
    compressed_rows: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    second = (compressed, _one_query(compressed_rows), None)
    return sparse_attention_decode.served(q[:, None], window, window_rows[:, None], None, *second, sink, **options)


def _call(
    kernel: Callable[..., None],
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool | None,
    compressed_rows: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    second = (compressed, _one_query(compressed_rows), None)
    rows = window_rows[:, None]
    out, lse = sparse_attention_decode.call(kernel, q[:, None], window, rows, None, *second, sink, **options)
    return out[:, 0], lse[..., 0]


def _one_query(rows: torch.Tensor | None) -> torch.Tensor | None:
    return None if rows is None else rows[:, None]


_operator = Operator(
    "sparse_attention",
    reference.sparse_attention,
    "q: float [T, H, D]",
    "window: pool [D]",
    "window_rows: int [T, K0]",
    "compressed?: pool [D]",
    "compressed_rows?: int [T, K1]",
    "sink?: wide [H]",
    dynamic=("T", "K1"),
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
    returns=2,
)


def sparse_attention(
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool | None = None,
    compressed_rows: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    probability_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [T, H, D] in ``out_dtype``, lse [T, H] in ``dtype``: natural log, without the sink).

    Args:
        q: float [T, H, D], rotated.
        window, compressed: pools whose rows are keys and values of all heads.
        window_rows, compressed_rows: int [T, K0] and [T, K1], flat rows of the pools in any order, −1 for none.
        sink: [H], one more logit a head without a value.
        softmax_scale: 1/√D by default. probability_dtype: what the probabilities are rounded to before the values.
        dtype: of the arithmetic. out_dtype: by default that of ``q``.

    A query without keys has out = 0 and lse = −∞. Raises ``ContractError``. dsv4-reference §7.
    """
    return _operator(
        q,
        window,
        window_rows,
        compressed,
        compressed_rows,
        sink,
        softmax_scale=softmax_scale,
        probability_dtype=probability_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
