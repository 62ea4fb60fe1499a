"""FlashMLA's interface over DeepSeek-V4's attention: its names, arguments, layouts, returns and conventions.

For the configurations of DeepSeek-V4: head dimension 512, keys that are values too, rows found by index. A program
written for ``flash_mla`` runs with ``from dsv4 import flash_mla``. What differs: arguments that FlashMLA asserts are
refused with ``ContractError``, a row outside its pool is skipped where FlashMLA would read out of bounds, and heads may
be any number. The scheduling metadata holds no schedule: kernels work theirs out from the lengths. dsv4-reference §7.4,
§7.5, §7.7; interface of FlashMLA 9241ae3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from dsv4.runtime import contract
from dsv4.runtime.ops.sparse_attention_decode import sparse_attention_decode
from dsv4.runtime.ops.sparse_attention_prefill import sparse_attention_prefill
from dsv4.runtime.pool import KV_WIDTH, ROW_BYTES, Pool, PoolFormat

__all__ = ["FlashMLASchedMeta", "flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata"]

DECODE, PREFILL = "flash_mla_with_kvcache", "flash_mla_sparse_fwd"
PACKED_BYTES = sum(ROW_BYTES[PoolFormat.KV_FP8])
BYTE_DTYPES = (torch.float8_e4m3fn, torch.int8, torch.uint8)
POOL_ALIGN_BYTES = 16
"""Of a pool and of its pages, as the kernels' loads need it; FlashMLA's own page strides are multiples of 576."""


@dataclass
class FlashMLASchedMeta:
    """What calls that share it have to agree on: filled by the first one. There is no schedule in it."""

    have_initialized: bool = False
    config: tuple[tuple[str, Any], ...] = ()


def get_mla_metadata(*_: object, **__: object) -> tuple[FlashMLASchedMeta, None]:
    """An empty ``FlashMLASchedMeta``, and None; arguments are not looked at, as in FlashMLA."""
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    extra_k_cache: torch.Tensor | None = None,
    extra_indices_in_kvcache: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse decoding over packed FP8 pages: (out bf16 [B, s_q, H, 512], lse f32 [B, H, s_q]).

    Args:
        q: bf16 [B, s_q, H, 512], the last dimension contiguous.
        k_cache, extra_k_cache: float8_e4m3fn, int8 or uint8 [pages, P, 1, 584], stride(1) 584: the packed pages of
            dsv4-reference §4.4, of which that shape is an envelope. Pages begin at multiples of 16 bytes.
        block_table, cache_seqlens: not looked at (FlashMLA uses them for dense attention, which this is not).
        head_dim_v: 512. num_splits: None. causal: False. is_fp8_kvcache: True.
        tile_scheduler_metadata: from ``get_mla_metadata``; calls that share one must have the same shapes.
        indices, extra_indices_in_kvcache: int32 [B, s_q, topk], page · P + offset; −1, and what lies outside the pool,
            is skipped. At least ``indices`` has to be given.
        topk_length, extra_topk_length: int32 [B], of each query's indices only the leftmost so many are read.
        attn_sink: f32 [H], one more logit without a value. softmax_scale: 512^-½ by default.

    lse is the natural logarithm, without the sink; a query without keys has out = 0 and lse = +∞. Raises
    ``ContractError`` naming the argument.
    """
    _is(DECODE, "head_dim_v", head_dim_v, KV_WIDTH)
    _is(DECODE, "num_splits", num_splits, None)
    _is(DECODE, "causal", causal, False)
    _is(DECODE, "is_fp8_kvcache", is_fp8_kvcache, True)
    if indices is None:
        raise contract.refusal(DECODE, "indices", "None", "int32 [B, s_q, topk] (dense attention is not DeepSeek-V4's)")
    _queries(DECODE, q, 4)
    if (extra_k_cache is None) != (extra_indices_in_kvcache is None):
        raise contract.refusal(
            DECODE, "extra_indices_in_kvcache", _kind(extra_indices_in_kvcache), "given together with extra_k_cache"
        )
    pool, extra = _pool("k_cache", k_cache), None
    if extra_k_cache is not None:
        extra = _pool("extra_k_cache", extra_k_cache)
    _agree(tile_scheduler_metadata, q, pool, indices, extra, extra_indices_in_kvcache)
    return sparse_attention_decode(
        q,
        pool,
        indices,
        topk_length,
        extra,
        extra_indices_in_kvcache,
        extra_topk_length,
        attn_sink,
        softmax_scale=softmax_scale,
        empty_lse=math.inf,
    )


def flash_mla_sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = KV_WIDTH,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse prefill: (out bf16 [s_q, H, 512], max_logits f32 [s_q, H], lse f32 [s_q, H]).

    Args:
        q: bf16 [s_q, H, 512]. kv: bf16 [s_kv, 1, 512]. indices: int32 [s_q, 1, topk], rows of kv; −1 and anything
            outside 0 … s_kv − 1 is skipped. sm_scale: of the logits. d_v: 512.
        attn_sink: f32 [H]. topk_length: int32 [s_q], of each query's indices only the leftmost so many are read.

    lse is the natural logarithm; it and max_logits are without the sink. A query without keys has out = 0, max_logits =
    −∞ and lse = +∞. Raises ``ContractError`` naming the argument.
    """
    _is(PREFILL, "d_v", d_v, KV_WIDTH)
    _queries(PREFILL, q, 3)
    if kv.ndim != 3 or kv.shape[1:] != (1, KV_WIDTH) or kv.dtype != torch.bfloat16:
        raise contract.refusal(PREFILL, "kv", f"{kv.dtype} {list(kv.shape)}", "torch.bfloat16 [s_kv, 1, 512]")
    if indices.ndim != 3 or indices.shape[:2] != (q.shape[0], 1):
        raise contract.refusal(PREFILL, "indices", f"shape {list(indices.shape)}", f"[{q.shape[0]}, 1, topk]")
    return sparse_attention_prefill(
        q, kv[:, 0], indices[:, 0], topk_length, attn_sink, softmax_scale=sm_scale, empty_lse=math.inf
    )


def _is(op: str, name: str, found: object, valid: object) -> None:
    if found != valid:
        raise contract.refusal(op, name, repr(found), repr(valid))


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _queries(op: str, q: torch.Tensor, rank: int) -> None:
    if q.ndim != rank or q.shape[-1] != KV_WIDTH or q.dtype != torch.bfloat16:
        valid = "torch.bfloat16 [B, s_q, H, 512]" if rank == 4 else "torch.bfloat16 [s_q, H, 512]"
        raise contract.refusal(op, "q", f"{q.dtype} {list(q.shape)}", valid)
    if q.stride(-1) != 1:
        raise contract.refusal(op, "q", f"stride {q.stride(-1)} of the last dimension", "1")


def _pool(name: str, cache: torch.Tensor) -> Pool:
    """The packed pages below FlashMLA's envelope."""
    if cache.ndim != 4 or cache.shape[2:] != (1, PACKED_BYTES) or cache.dtype not in BYTE_DTYPES:
        valid = f"[pages, P, 1, {PACKED_BYTES}] in float8_e4m3fn, int8 or uint8"
        raise contract.refusal(DECODE, name, f"{cache.dtype} {list(cache.shape)}", valid)
    pages, rows = cache.shape[:2]
    page_stride = cache.stride(0) if pages > 1 else -(-rows * PACKED_BYTES // POOL_ALIGN_BYTES) * POOL_ALIGN_BYTES
    inner = (cache.stride(1) if rows > 1 else PACKED_BYTES, cache.stride(3))
    if inner != (PACKED_BYTES, 1) or page_stride < rows * PACKED_BYTES or page_stride % POOL_ALIGN_BYTES:
        found = f"strides {list(cache.stride())}"
        valid = f"[a multiple of {POOL_ALIGN_BYTES} from {rows * PACKED_BYTES} on, {PACKED_BYTES}, any, 1]"
        raise contract.refusal(DECODE, name, found, valid)
    data = cache.view(torch.uint8).as_strided((pages, rows * PACKED_BYTES), (page_stride, 1))
    return Pool(data, PoolFormat.KV_FP8, rows)


def _agree(
    metadata: FlashMLASchedMeta,
    q: torch.Tensor,
    pool: Pool,
    indices: torch.Tensor,
    extra: Pool | None,
    extra_indices: torch.Tensor | None,
) -> None:
    """The first call fills the metadata, the others have to be like it."""
    if not isinstance(metadata, FlashMLASchedMeta):
        raise contract.refusal(DECODE, "tile_scheduler_metadata", _kind(metadata), "what get_mla_metadata returned")
    config = {
        "batch": q.shape[0],
        "s_q": q.shape[1],
        "heads": q.shape[2],
        "page": pool.page,
        "topk": indices.shape[-1],
        "extra page": None if extra is None else extra.page,
        "extra topk": None if extra_indices is None else extra_indices.shape[-1],
    }
    if not metadata.have_initialized:
        metadata.have_initialized, metadata.config = True, tuple(config.items())
    for name, valid in metadata.config:
        if config[name] != valid:
            found = f"{name} {config[name]}"
            raise contract.refusal(DECODE, "tile_scheduler_metadata", found, f"{valid}, as in the first call with it")
