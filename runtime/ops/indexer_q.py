"""indexer_q: the indexer's queries rotated, transformed and quantised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import indexer_q as reference
from dsv4.runtime.reference.indexer_q import IndexCode
from dsv4.runtime.weight import Quantized

WIDTH, ROTARY, FP4_BLOCK = 128, 64, 32


def _serves(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    code: IndexCode,
    rotate_hadamard: bool,
    stage_dtype: torch.dtype | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Served | None:
    tokens, heads, width = q.shape
    narrow = are(torch.bfloat16, q) and (code != "none" or out_dtype in (None, torch.bfloat16))
    if not narrow or not rotate_hadamard or not are(torch.float32, cos_sin):
        return None
    if stage_dtype is not None or dtype != torch.float32 or width != WIDTH or cos_sin.shape[1] != ROTARY:
        return None
    return Served({"H": heads}, {"T": tokens}, {"code": code, "fold": "none"})


def _call(
    kernel: Callable[..., None], q: torch.Tensor, cos_sin: torch.Tensor, *, code: IndexCode, **_: object
) -> torch.Tensor | Quantized:
    tokens, heads, width = q.shape
    factor = 1.0  # of weights, which are not given here
    if code == "none":
        rotated = torch.empty_like(q, memory_format=torch.contiguous_format)
        kernel(q, cos_sin, None, None, rotated, None, None, None, None, factor)
        return rotated
    if code == "fp8":
        codes = q.new_empty(q.shape, dtype=torch.float8_e4m3fn)
        scale = q.new_empty((tokens, heads, 1), dtype=torch.float8_e8m0fnu)
        kernel(q, cos_sin, None, None, None, codes, None, scale, None, factor)
        return Quantized(codes, scale, width)
    packed = q.new_empty((tokens, heads, width // 2), dtype=torch.uint8)
    scale = q.new_empty((tokens, heads, width // FP4_BLOCK), dtype=torch.float8_e8m0fnu)
    kernel(q, cos_sin, None, None, None, None, packed, scale, None, factor)
    return Quantized(packed, scale, FP4_BLOCK)


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor | Quantized:
    if options["code"] == "none":
        return tensors[0]
    return Quantized(tensors[0], tensors[1], WIDTH if options["code"] == "fp8" else FP4_BLOCK)


_operator = Operator(
    "indexer_q",
    reference.indexer_q,
    "q: float [T, h, D]",
    "cos_sin: wide [T, r]",
    kernel=KernelPath(_serves, _call),
    rebuild=_rebuild,
)


def indexer_q(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    code: IndexCode = "none",
    rotate_hadamard: bool = False,
    stage_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """q' [T, h, D] in ``out_dtype`` (default: that of q), or quantised by ``code``: ``"fp4"`` or ``"fp8"``.

    Args:
        q: float [T, h, D], the product of the indexer's wq_b.
        cos_sin: [T, r], ``rope_table`` of the tokens' positions.
        rotate_hadamard: apply the Hadamard transform after the rotation.
        stage_dtype: rounded to after each step. dtype: of the arithmetic.

    Raises ``ContractError``. dsv4-reference §6.1 to §6.3.
    """
    return _operator(
        q,
        cos_sin,
        code=code,
        rotate_hadamard=rotate_hadamard,
        stage_dtype=stage_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
