"""sparse_attention_decode: every request's queries over their own rows of one or two pools, with lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime import dispatch
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.pool import KV_WIDTH, PAGE_ALIGN_BYTES, Pool, PoolFormat
from dsv4.runtime.reference import sparse_attention_decode as reference

GATHER4_ARCHS = ("sm_100a",)
"""Where the copy engine takes four rows at once, of pools that are whole rows from page to page."""

PARTS = 132
"""Parts of queries' keys that a call makes room for: the CTAs of a kernel for sm_90a that take queries by turns."""
PART_NUMBERS = 64 * KV_WIDTH + 2 * 64
"""Float32 numbers of a part: O, m and l of 64 heads."""


def served(
    q: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    extra: Pool | None,
    extra_rows: torch.Tensor | None,
    extra_length: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    """The kernel for two pools of one format and bf16 queries [B, Q, H, 512]."""
    if not computes(q, sink, **options):
        return None
    cache = cache_of(pool) if extra is None or extra.format is pool.format else None
    if cache is None:
        return None
    sizes = {"B": q.shape[0], "Q": q.shape[1], "K0": rows.shape[2], "K1": 0, "PT": 0, **pool_sizes(pool, 0)}
    sizes |= pool_sizes(pool if extra is None else extra, 1)
    if extra_rows is not None:
        sizes["K1"] = extra_rows.shape[2]
    sizes["W"] = parts_wanted(q.shape[0] * q.shape[1], q.shape[2])
    flags = {
        "cache": page_format(cache, dispatch.arch_of(q.device), pool, *([] if extra is None else [extra])),
        "extra": "none" if extra is None else "rows",
        "has_length0": length is not None,
        "has_length1": extra_length is not None,
        "has_sink": sink is not None,
        "has_max": False,
    }
    return Served({"H": q.shape[2]}, sizes, flags, op="sparse_attention_decode")


def computes(
    q: torch.Tensor,
    sink: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    softmax_scale: float | None,
    probability_dtype: torch.dtype | None = None,
    **_: object,
) -> bool:
    """Whether the kernel computes as it is asked to. It rounds probabilities to bf16, as §7.2 has it."""
    narrow = are(torch.bfloat16, q) and out_dtype in (None, torch.bfloat16) and are(torch.float32, sink)
    plain = dtype == torch.float32 and probability_dtype in (None, torch.bfloat16) and q.shape[-1] == KV_WIDTH
    return narrow and plain and (softmax_scale is None or softmax_scale > 0)


def cache_of(pool: Pool) -> str | None:
    """The kernel's name for a format of pools, or None for one that it has not."""
    if pool.format is PoolFormat.KV_FP8:
        return "kv_fp8"
    return "plain" if pool.format is PoolFormat.PLAIN and are(torch.bfloat16, pool.data) else None


def page_format(cache: str, arch: str | None, *pools: Pool) -> str:
    """``cache``, or the kernel's name for packed pages of which each begins a multiple of 576 bytes after another.

    Where that is not so the kernel that copies each row by itself serves, which any page stride suits. A single page
    has none.
    """
    if cache != "kv_fp8" or arch not in GATHER4_ARCHS:
        return cache
    is_aligned = all(pool.data.shape[0] == 1 or pool.data.stride(0) % PAGE_ALIGN_BYTES == 0 for pool in pools)
    return "kv_fp8_aligned" if is_aligned else cache


def pool_sizes(pool: Pool, number: int) -> dict[str, int]:
    """The kernel's sizes of its first or second pool."""
    pages, page_bytes = pool.data.shape[:2]
    return {f"N{number}": pages, f"PB{number}": page_bytes, f"S{number}": pool.rows}


def pool_arguments(pool: Pool | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """Packed pages, rows of bf16, of which one is None, and the rows of a page."""
    if pool is None:
        return None, None, 1
    if pool.format is PoolFormat.KV_FP8:
        return pool.data, None, pool.page
    return None, pool.data.view(-1, pool.width), 1


def parts_wanted(tokens: int, heads: int) -> int:
    """For how many parts of the keys of ``tokens`` queries the kernel is given room."""
    return PARTS if tokens * -(-heads // 64) > PARTS else 0


def _workspace(
    q: torch.Tensor, pool: Pool, length: torch.Tensor | None, extra_keys: tuple[torch.Tensor | None, ...]
) -> torch.Tensor | None:
    """Where the kernel may put parts, if it does: one of packed pages, more than 32 heads and no lengths."""
    _, extra_length, table, _ = extra_keys
    has_lengths = any(each is not None for each in (length, extra_length, table))
    if pool.format is not PoolFormat.KV_FP8 or q.shape[2] <= 32 or has_lengths:
        return None
    rows = parts_wanted(q.shape[0] * q.shape[1], q.shape[2])
    return q.new_empty((rows, PART_NUMBERS), dtype=torch.float32)


def call(
    kernel: Callable[..., None],
    q: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    extra: Pool | None,
    extra_rows: torch.Tensor | None,
    extra_length: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel called with rows of both pools; see ``launched``."""
    keys = (narrow(extra_rows), narrow(extra_length), None, None)
    return launched(kernel, q, pool, rows, length, extra, keys, sink, **options)


def launched(
    kernel: Callable[..., None],
    q: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    extra: Pool | None,
    extra_keys: tuple[torch.Tensor | None, ...],
    sink: torch.Tensor | None,
    *,
    softmax_scale: float | None,
    empty_lse: float = -math.inf,
    max_logits: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, Q, H, 512] and lse [B, H, Q], which lies in memory as [B, Q, H].

    ``extra_keys``: rows, lengths, table of pages and counts of the second pool, of which some are None. ``max_logits``
    [B, H, Q] is written if it is given.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32).transpose(1, 2)
    scale = KV_WIDTH**-0.5 if softmax_scale is None else softmax_scale
    *first, page = pool_arguments(pool)
    *second, second_page = pool_arguments(extra)
    keys, sink, parts = (narrow(rows), narrow(length)), dense(sink), _workspace(q, pool, length, extra_keys)
    kernel(
        q, *first, *keys, *second, *extra_keys, sink, out, lse, max_logits, parts, page, second_page, scale, empty_lse
    )
    return out, lse


def narrow(numbers: torch.Tensor | None) -> torch.Tensor | None:
    """int32 with the last dimension contiguous, as the kernel wants its indices."""
    if numbers is None:
        return None
    numbers = numbers.to(torch.int32)
    return numbers if numbers.stride(-1) == 1 else numbers.contiguous()


def dense(sink: torch.Tensor | None) -> torch.Tensor | None:
    """The logits one behind the other, as the kernel wants them."""
    return sink if sink is None or sink.stride(0) == 1 else sink.contiguous()


_operator = Operator(
    "sparse_attention_decode",
    reference.sparse_attention_decode,
    "q: float [B, Q, H, D]",
    "pool: pool [D]",
    "rows: int [B, Q, K0]",
    "length?: int [B]",
    "extra?: pool [D]",
    "extra_rows?: int [B, Q, K1]",
    "extra_length?: int [B]",
    "sink?: wide [H]",
    dynamic=("B", "Q", "K0", "K1"),
    kernel=KernelPath(served, call),
    returns=2,
)


def sparse_attention_decode(
    q: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    length: torch.Tensor | None = None,
    extra: Pool | None = None,
    extra_rows: torch.Tensor | None = None,
    extra_length: torch.Tensor | None = None,
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
        pool, extra: rows that are keys and values of all heads (the window; compressed entries).
        rows, extra_rows: int [B, Q, K0] and [B, Q, K1], flat rows of the pools in any order. What is no row of its
            pool, −1 among it, is no key.
        length, extra_length: int [B], of each query's rows only the leftmost so many count; all by default.
        sink: [H], one more logit a head without a value.
        softmax_scale: 1/√D by default. probability_dtype: what the probabilities are rounded to before the values (a
            kernel rounds to bf16). dtype: of the arithmetic. out_dtype: by default that of ``q``.

    A query without keys has out = 0 and lse = ``empty_lse``. Raises ``ContractError``. dsv4-reference §7.2, §7.4.
    """
    return _operator(
        q,
        pool,
        rows,
        length,
        extra,
        extra_rows,
        extra_length,
        sink,
        softmax_scale=softmax_scale,
        empty_lse=empty_lse,
        probability_dtype=probability_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
