"""hca_attention_decode: decoding queries over their window and over all compressed entries of their request."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops import sparse_attention_decode as decode
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import hca_attention_decode as reference


def _serves(
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool,
    pages: torch.Tensor,
    visible: torch.Tensor,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    alone = decode.served(q, window, window_rows, None, compressed, None, None, sink, **options)
    if alone is None or {window.format, compressed.format} != {PoolFormat.KV_FP8}:
        return None
    sizes = {**alone.sizes, **decode.pool_sizes(compressed, 1), "PT": pages.shape[1]}
    return Served(alone.dims, sizes, {**alone.variant, "extra": "pages"}, op=alone.op)


def _call(
    kernel: Callable[..., None],
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool,
    pages: torch.Tensor,
    visible: torch.Tensor,
    sink: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    keys = (None, None, decode.narrow(pages), decode.narrow(visible.contiguous()))
    return decode.launched(kernel, q, window, window_rows, None, compressed, keys, sink, **options)


_operator = Operator(
    "hca_attention_decode",
    reference.hca_attention_decode,
    "q: float [B, Q, H, D]",
    "window: pool [D]",
    "window_rows: int [B, Q, K0]",
    "compressed: pool [D]",
    "pages: int [B, P]",
    "visible: int [B, Q]",
    "sink?: wide [H]",
    dynamic=("B", "Q", "K0", "P"),
    kernel=KernelPath(_serves, _call),
    returns=2,
)


def hca_attention_decode(
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool,
    pages: torch.Tensor,
    visible: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    empty_lse: float = -math.inf,
    probability_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [B, Q, H, D] in ``out_dtype``, lse [B, H, Q] in ``dtype``: natural log, without the sink).

    Args:
        q: float [B, Q, H, D], rotated; Q is 1 + draft tokens.
        window: rows that are keys and values of all heads; window_rows: int [B, Q, K0], −1 for none.
        compressed: the entries of all requests in pages; pages: int [B, P], those of each request, in order.
        visible: int [B, Q], how many of its request's entries a query sees: ⌊(position + 1) / 128⌋.
        sink: [H], one more logit a head without a value. softmax_scale: 1/√D by default.
        probability_dtype: what the probabilities are rounded to before the values (a kernel rounds to bf16).
        dtype: of the arithmetic. out_dtype: by default that of ``q``.

    A query without keys has out = 0 and lse = ``empty_lse``. Raises ``ContractError``. dsv4-reference §7.1, §7.2.
    """
    return _operator(
        q,
        window,
        window_rows,
        compressed,
        pages,
        visible,
        sink,
        softmax_scale=softmax_scale,
        empty_lse=empty_lse,
        probability_dtype=probability_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
