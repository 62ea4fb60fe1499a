"""q_norm_rope_kv_insert: queries normalised and rotated; keys normalised, rotated and written to the window cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.pool import KV_WIDTH, Pool, PoolFormat
from dsv4.runtime.reference import q_norm_rope_kv_insert as reference

ROTARY = 64


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "rows", values["rows"], -1, values["pool"].rows - 1)


def _serves(
    q: torch.Tensor,
    kv: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    *,
    stage_dtype: torch.dtype | None,
    fake_quantize: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    **_: object,
) -> Served | None:
    tokens, heads, width = q.shape
    narrow = are(torch.bfloat16, q, kv, kv_norm) and out_dtype in (None, torch.bfloat16)
    stored = pool.format is PoolFormat.KV_FP8 or (pool.format is PoolFormat.PLAIN and are(torch.bfloat16, pool.data))
    if not narrow or not stored or fake_quantize or width != KV_WIDTH or cos_sin.shape[1] != ROTARY:
        return None
    if stage_dtype is not None or dtype != torch.float32 or not are(torch.float32, cos_sin):
        return None
    return Served({"H": heads}, {"T": tokens}, {"cache": pool.format.value})


def _call(
    kernel: Callable[..., None],
    q: torch.Tensor,
    kv: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    *,
    eps: float,
    **_: object,
) -> torch.Tensor:
    queries = torch.empty_like(q, memory_format=torch.contiguous_format)
    packed = pool.data if pool.format is PoolFormat.KV_FP8 else None
    plain = pool.data.view(-1, pool.width) if packed is None else None
    kernel(q, kv, kv_norm, cos_sin, packed, plain, rows, queries, pool.page, eps)
    return queries


_operator = Operator(
    "q_norm_rope_kv_insert",
    reference.q_norm_rope_kv_insert,
    "q: float [T, H, D]",
    "kv: float [T, D]",
    "kv_norm: float [D]",
    "cos_sin: wide [T, r]",
    "pool: pool [D]",
    "rows: i64 [T]",
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
    mutates=("pool",),
    returns=1,
)


def q_norm_rope_kv_insert(
    q: torch.Tensor,
    kv: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    *,
    eps: float = 1e-6,
    stage_dtype: torch.dtype | None = None,
    fake_quantize: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The queries q' [T, H, D]; the keys go to ``rows`` of ``pool``.

    Args:
        q: float [T, H, D], the product of wq_b. kv: float [T, D], the product of wkv. kv_norm: [D].
        cos_sin: [T, r], ``rope_table`` of the tokens' positions; the last r dimensions are rotated.
        pool: rows of D numbers; written to.
        rows: i64 [T], −1 for a token that is not stored; no two others equal. Outside of debug mode a kernel does not
            look whether the pool has such a row: one that it has not is written beside the pool's memory.
        stage_dtype: rounded to after each step; ``None`` rounds once, at the end.
        fake_quantize: round the first 448 dimensions by FQ64 before storing them in a plain pool.
        dtype: of the arithmetic. out_dtype: of q', by default that of ``q``.

    Raises ``ContractError``. dsv4-reference §3.2, §4.1, §4.3.
    """
    return _operator(
        q,
        kv,
        kv_norm,
        cos_sin,
        pool,
        rows,
        eps=eps,
        stage_dtype=stage_dtype,
        fake_quantize=fake_quantize,
        dtype=dtype,
        out_dtype=out_dtype,
    )
