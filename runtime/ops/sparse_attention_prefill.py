"""sparse_attention_prefill: many queries over their own rows of one tensor of keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime import dispatch
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops import sparse_attention_decode as decode
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import sparse_attention_prefill as reference

DECODE = "sparse_attention_decode"
WITHOUT_OWN_KERNEL = ("sm_100a",)
"""Where the decoding kernel serves, each query as a request of its own."""
UNUSED_SIZES = ("K1", "PT", "N0", "PB0", "N1", "PB1", "S1")


def _serves(
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    """The kernel made for it, on the chips that have one."""
    if (
        not decode.computes(q, sink, **options)
        or kv.dtype != torch.bfloat16
        or dispatch.arch_of(q.device) in WITHOUT_OWN_KERNEL
    ):
        return None
    sizes = {"T": q.shape[0], "K": rows.shape[1], "S": kv.shape[0]}
    return Served({"H": q.shape[1]}, sizes, {"has_length": length is not None, "has_sink": sink is not None})


def _call(
    kernel: Callable[..., None],
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    sink: torch.Tensor | None,
    *,
    softmax_scale: float | None,
    empty_lse: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, lse, max_logits, scale = _outputs(q, softmax_scale)
    keys = (decode.narrow(rows), decode.narrow(length))
    kernel(q, kv, *keys, decode.dense(sink), out, lse, max_logits, scale, empty_lse)
    return out, max_logits, lse


def _outputs(q: torch.Tensor, softmax_scale: float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """out, lse and max_logits, not written yet, and the scale of the logits."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse, max_logits = (q.new_empty(q.shape[:2], dtype=torch.float32) for _ in range(2))
    return out, lse, max_logits, q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale


def _serves_as_decoding(
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> Served | None:
    """The decoding kernel, each query a request of its own."""
    if not decode.computes(q, sink, **options) or kv.dtype != torch.bfloat16:
        return None
    tokens, heads, _ = q.shape
    sizes = {"B": tokens, "Q": 1, "K0": rows.shape[1], "S0": kv.shape[0]} | dict.fromkeys(UNUSED_SIZES, 0)
    flags: dict[str, Scalar] = {
        "cache": "plain",
        "extra": "none",
        "has_length0": length is not None,
        "has_length1": False,
    }
    return Served({"H": heads}, sizes, {**flags, "has_sink": sink is not None, "has_max": True}, DECODE)


def _call_as_decoding(
    kernel: Callable[..., None],
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: torch.Tensor,
    length: torch.Tensor | None,
    sink: torch.Tensor | None,
    *,
    softmax_scale: float | None,
    empty_lse: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, lse, max_logits, scale = _outputs(q, softmax_scale)
    keys = (decode.narrow(rows[:, None]), decode.narrow(length))
    numbers = (out[:, None], lse[..., None], max_logits[..., None])
    no_second, no_parts = [None] * 6, None
    kernel(q[:, None], None, kv, *keys, *no_second, decode.dense(sink), *numbers, no_parts, 1, 1, scale, empty_lse)
    return out, max_logits, lse


_operator = Operator(
    "sparse_attention_prefill",
    reference.sparse_attention_prefill,
    "q: float [T, H, D]",
    "kv: float [S, D]",
    "rows: int [T, K]",
    "length?: int [T]",
    "sink?: wide [H]",
    dynamic=("T", "S", "K"),
    kernel=(KernelPath(_serves, _call), KernelPath(_serves_as_decoding, _call_as_decoding)),
    returns=3,
)


def sparse_attention_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: torch.Tensor,
    length: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    empty_lse: float = -math.inf,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out [T, H, D] in ``out_dtype``, max_logits [T, H] and lse [T, H] in ``dtype``).

    Args:
        q: float [T, H, D], rotated. kv: float [S, D], keys and values of all heads.
        rows: int [T, K], rows of ``kv`` in any order; what is no row of it, −1 among it, is no key.
        length: int [T], of each query's rows only the leftmost so many count; all by default.
        sink: [H], one more logit a head without a value; max_logits and lse are without it.
        softmax_scale: 1/√D by default. dtype: of the arithmetic. out_dtype: by default that of ``q``.

    max_logits is the largest logit, scaled, and lse the natural log-sum-exp. A query without keys has out = 0,
    max_logits = −∞ and lse = ``empty_lse``. Raises ``ContractError``. dsv4-reference §7.5.
    """
    return _operator(
        q,
        kv,
        rows,
        length,
        sink,
        softmax_scale=softmax_scale,
        empty_lse=empty_lse,
        dtype=dtype,
        out_dtype=out_dtype,
    )
