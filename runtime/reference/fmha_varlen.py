"""Attention over sequences of any lengths in plain PyTorch: the oracle of fmha_varlen's kernels and the CPU path."""

from __future__ import annotations

import math

import torch
from torch._subclasses.fake_tensor import FakeTensor

from dsv4.runtime.reference.fmha import fmha


def fmha_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fmha of each sequence b: queries cu_seqlens_q[b] … cu_seqlens_q[b + 1] − 1 of q [TQ, Hq, D], keys likewise of k
    and v [TK, Hkv, D]. The starts are integers [B + 1] that never fall.

    Returns (out [TQ, Hq, D] in ``out_dtype``, default that of ``q``; lse [Hq, TQ] in ``dtype``). A row without keys, or
    of no sequence, has out = 0 and lse = −∞. The rest is fmha's.
    """
    out, lse = _nothing_seen(q, dtype, out_dtype)
    if _has_no_data(q):
        return out, lse
    q_starts, k_starts = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(len(q_starts) - 1):
        rows, keys = slice(q_starts[b], q_starts[b + 1]), slice(k_starts[b], k_starts[b + 1])
        out[rows], lse[:, rows] = _one(q[rows], k[keys], v[keys], sink, causal, softmax_scale, dtype, out_dtype)
    return out, lse


def fmha_paged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seqlens_k: torch.Tensor,
    block_table: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``fmha_varlen`` with keys and values in pages, k and v [P, T, Hkv, D].

    Sequence b has ``seqlens_k[b]`` keys, key j in row j % T of page ``block_table[b, j // T]``; the table [B, PT] is
    not read behind them.
    """
    out, lse = _nothing_seen(q, dtype, out_dtype)
    if _has_no_data(q):
        return out, lse
    q_starts, page = cu_seqlens_q.tolist(), k.shape[1]
    for b, keys in enumerate(seqlens_k.tolist()):
        rows = slice(q_starts[b], q_starts[b + 1])
        pages = block_table[b, : -(-keys // page) if keys else 0].long()
        k_own, v_own = (pool[pages].flatten(0, 1)[:keys] for pool in (k, v))
        out[rows], lse[:, rows] = _one(q[rows], k_own, v_own, sink, causal, softmax_scale, dtype, out_dtype)
    return out, lse


def _nothing_seen(
    q: torch.Tensor, dtype: torch.dtype, out_dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.zeros(q.shape, dtype=out_dtype or q.dtype, device=q.device)
    return out, torch.full((q.shape[1], q.shape[0]), -math.inf, dtype=dtype, device=q.device)


def _has_no_data(q: torch.Tensor) -> bool:
    """Whether only shapes are asked for: lengths cannot be read, and nothing depends on them."""
    return q.is_meta or isinstance(q, FakeTensor)


def _one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    causal: bool,
    softmax_scale: float | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = fmha(
        q[None],
        k[None],
        v[None],
        causal=causal,
        softmax_scale=softmax_scale,
        sink=sink,
        dtype=dtype,
        out_dtype=out_dtype,
    )
    return out[0], lse[0]
