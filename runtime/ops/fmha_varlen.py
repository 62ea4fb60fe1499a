"""fmha_varlen and fmha_paged: dense attention of sequences of any lengths, whose lengths only the device knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import Any

import torch

from dsv4.runtime import contract
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import fmha_varlen as reference

OP, PAGED_OP = "fmha_varlen", "fmha_paged"
HEAD_DIM_MULTIPLE, HEAD_DIM_MAX = 64, 512
PAGE_ROWS = (64, 16)
"""Keys that a kernel takes from a page at a time, the best first; a page has to hold a multiple of them."""
VECTOR = 8
"""Elements of 16 bytes: what strides are multiples of, and data is aligned to."""


def page_rows(page: int) -> int:
    """Keys that a kernel takes at a time from pages of ``page`` keys; 0 where no kernel has such pages."""
    return next((rows for rows in PAGE_ROWS if page and page % rows == 0), 0)


def _served(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    rows: int,
    sizes: dict[str, int],
    *,
    causal: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    softmax_scale: float | None,
) -> Served | None:
    """The kernel for bf16 tensors and float32 arithmetic, of a head dimension that it is made for."""
    width = q.shape[-1]
    narrow = are(torch.bfloat16, q, k, v) and out_dtype in (None, torch.bfloat16) and are(torch.float32, sink)
    if not narrow or dtype != torch.float32 or width % HEAD_DIM_MULTIPLE or not 0 < width <= HEAD_DIM_MAX:
        return None
    sizes = {**sizes, "TQ": q.shape[0], "Hq": q.shape[1], "Hkv": k.shape[-2]}
    flags: dict[str, Scalar] = {"page_rows": rows, "causal": causal, "has_sink": sink is not None}
    return Served({"D": width}, sizes, flags, op=OP)


def _serves(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    sizes = {"B": cu_seqlens_q.shape[0] - 1, "P": 1, "T": k.shape[0], "PT": 0}
    return _served(q, k, v, sink, 0, sizes, **options)


def _serves_pages(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seqlens_k: torch.Tensor,
    block_table: torch.Tensor,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    rows = page_rows(k.shape[1])
    sizes = {"B": seqlens_k.shape[0], "P": k.shape[0], "T": k.shape[1], "PT": block_table.shape[1]}
    return _served(q, k, v, sink, rows, sizes, **options) if rows else None


def _outputs(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _scale(q: torch.Tensor, softmax_scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)


def _call(
    kernel: Callable[..., None],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    sink: torch.Tensor | None,
    *,
    softmax_scale: float | None,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _outputs(q)
    scale = _scale(q, softmax_scale)
    kernel(q, k[None], v[None], cu_seqlens_q, cu_seqlens_k, None, None, sink, out, lse, scale)
    return out, lse


def _call_pages(
    kernel: Callable[..., None],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seqlens_k: torch.Tensor,
    block_table: torch.Tensor,
    sink: torch.Tensor | None,
    *,
    softmax_scale: float | None,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _outputs(q)
    scale = _scale(q, softmax_scale)
    kernel(q, k, v, cu_seqlens_q, None, seqlens_k, block_table, sink, out, lse, scale)
    return out, lse


def _check_starts(op: str, name: str, starts: torch.Tensor, rows: int) -> None:
    """Debug mode: sums that begin at 0, never fall and end at the number of rows."""
    values = starts.tolist()
    if values[0] != 0 or values[-1] != rows:
        raise contract.refusal(op, name, f"{values[0]} … {values[-1]}", f"0 … {rows}, sums over all rows")
    for place, (one, following) in enumerate(pairwise(values)):
        if following < one:
            raise contract.refusal(op, name, f"{following} after {one} at {place + 1}", "sums that never fall")


def _check_values(op: str, values: dict[str, Any]) -> None:
    _check_starts(op, "cu_seqlens_q", values["cu_seqlens_q"], values["q"].shape[0])
    _check_starts(op, "cu_seqlens_k", values["cu_seqlens_k"], values["k"].shape[0])
    _check_sink(op, values)


def _check_page_values(op: str, values: dict[str, Any]) -> None:
    _check_starts(op, "cu_seqlens_q", values["cu_seqlens_q"], values["q"].shape[0])
    pages, page = values["k"].shape[:2]
    table, lengths = values["block_table"], values["seqlens_k"]
    in_range(op, "seqlens_k", lengths, 0, table.shape[1] * page + 1)
    column = torch.arange(table.shape[1], device=table.device)
    in_range(op, "block_table", table[column * page < lengths[:, None]], 0, pages)
    _check_sink(op, values)


def _check_sink(op: str, values: dict[str, Any]) -> None:
    if values["sink"] is not None:
        contract.not_nan(op, "sink", values["sink"])


_operator = Operator(
    OP,
    reference.fmha_varlen,
    "q: float [TQ, Hq, D]",
    "k: float [TK, Hkv, D]",
    "v: float [TK, Hkv, D]",
    "cu_seqlens_q: i32 [starts]",
    "cu_seqlens_k: i32 [starts]",
    "sink?: wide [Hq]",
    dynamic=("TQ", "TK", "starts"),
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
    returns=2,
)
_paged_operator = Operator(
    PAGED_OP,
    reference.fmha_paged,
    "q: float [TQ, Hq, D]",
    "k: float [P, T, Hkv, D]",
    "v: float [P, T, Hkv, D]",
    "cu_seqlens_q: i32 [starts]",
    "seqlens_k: i32 [B]",
    "block_table: i32 [B, PT]",
    "sink?: wide [Hq]",
    dynamic=("TQ", "P", "starts", "B", "PT"),
    check_values=_check_page_values,
    kernel=KernelPath(_serves_pages, _call_pages),
    returns=2,
)


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
    """Dense attention of sequences that lie one after another: (out [TQ, Hq, D], lse [Hq, TQ]).

    Args:
        q: float [TQ, Hq, D], the queries of all sequences; bf16 for a kernel, which wants D a multiple of 64 up to 512,
            the last stride 1, the others multiples of 8, and data aligned to 16 bytes, of k and v too.
        k, v: float [TK, Hkv, D]. Hq is a multiple of Hkv; query head h reads key head h // (Hq / Hkv).
        cu_seqlens_q, cu_seqlens_k: int32 [B + 1], sums of the lengths before each sequence, from 0 to TQ and TK. Any
            length may be 0. They are read on the device; debug mode checks them.
        sink: wide [Hq], one more logit a head without a value, as fmha has it.
        causal: query i of a sequence sees its key j iff j ≤ i + keys − queries (aligned at the bottom right).
        softmax_scale: positive; 1/√D where it is None. dtype: of the arithmetic. out_dtype: by default that of ``q``.

    lse is natural, in ``dtype``, and without the sink. A row without keys has out = 0 and lse = −∞. What other
    sequences hold, NaN among it, does not matter to a sequence. Raises ``ContractError``, and ``KernelMissing`` with
    ``missing="raise"``. The formula is dsv4-reference §7.2.
    """
    _check(OP, q, k, cu_seqlens_q, causal, softmax_scale)
    return _operator(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        sink,
        causal=causal,
        softmax_scale=softmax_scale,
        dtype=dtype,
        out_dtype=out_dtype,
    )


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
    """``fmha_varlen`` with keys and values in pages.

    Args:
        k, v: float [P, T, Hkv, D], P pages of T keys. A kernel wants T a multiple of 16 (better of 64).
        seqlens_k: int32 [B], the keys of each sequence, from 0 to PT · T.
        block_table: int32 [B, PT], the pages of each sequence: its key j lies in row j % T of page
            ``block_table[b, j // T]``. Entries behind its last key are not read, rows behind it may hold anything.

    The other arguments, the results and the errors are ``fmha_varlen``'s.
    """
    _check(PAGED_OP, q, k, cu_seqlens_q, causal, softmax_scale)
    if isinstance(seqlens_k, torch.Tensor) and seqlens_k.ndim == 1 and len(cu_seqlens_q) != len(seqlens_k) + 1:
        found, valid = f"shape {list(cu_seqlens_q.shape)}", f"[{len(seqlens_k) + 1}], one more than seqlens_k has"
        raise contract.refusal(PAGED_OP, "cu_seqlens_q", found, valid)
    return _paged_operator(
        q,
        k,
        v,
        cu_seqlens_q,
        seqlens_k,
        block_table,
        sink,
        causal=causal,
        softmax_scale=softmax_scale,
        dtype=dtype,
        out_dtype=out_dtype,
    )


def _check(
    op: str, q: torch.Tensor, k: torch.Tensor, cu_seqlens_q: torch.Tensor, causal: bool, softmax_scale: float | None
) -> None:
    """What the lines of ports cannot say."""
    for name, tensor, rank in (("q", q, 3), ("k", k, 3 if op == OP else 4), ("cu_seqlens_q", cu_seqlens_q, 1)):
        contract.require_tensor(op, name, tensor)
        if tensor.ndim != rank:
            raise contract.refusal(op, name, f"{tensor.ndim} dimensions", str(rank))
    if not isinstance(causal, bool):
        raise contract.refusal(op, "causal", repr(causal), "True or False")
    if softmax_scale is not None and not 0.0 < softmax_scale < inf:
        contract.finite_positive(op, "softmax_scale", softmax_scale)
    if q.shape[-1] == 0:
        raise contract.refusal(op, "q", "a head dimension of 0", "1 and more")
    if k.shape[-2] == 0 or q.shape[1] % k.shape[-2]:
        raise contract.refusal(op, "q", f"{q.shape[1]} heads", f"a multiple of k's {k.shape[-2]} heads")
    if cu_seqlens_q.shape[0] == 0:
        raise contract.refusal(op, "cu_seqlens_q", "shape [0]", "[B + 1], a start more than there are sequences")
