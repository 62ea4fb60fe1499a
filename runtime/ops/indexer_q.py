"""indexer_q, indexer_q_folded: the indexer's queries rotated, transformed and quantised; the weights of their heads."""

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
FOLDED_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def _serves(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    code: IndexCode,
    rotate_hadamard: bool,
    stage_dtype: torch.dtype | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    fold: str = "none",
) -> Served | None:
    tokens, heads, width = q.shape
    narrow = are(torch.bfloat16, q) and (code != "none" or out_dtype in (None, torch.bfloat16))
    if not narrow or not rotate_hadamard or not are(torch.float32, cos_sin):
        return None
    if stage_dtype is not None or dtype != torch.float32 or width != WIDTH or cos_sin.shape[1] != ROTARY:
        return None
    return Served({"H": heads}, {"T": tokens}, {"code": code, "fold": fold}, op="indexer_q")


def _call(
    kernel: Callable[..., None], q: torch.Tensor, cos_sin: torch.Tensor, *, code: IndexCode, **_: object
) -> torch.Tensor | Quantized:
    made, outputs = _outputs(q, code)
    factor = 1.0  # of weights, which are not given here
    kernel(q, cos_sin, None, None, *outputs, None, factor)
    return made


def _outputs(
    q: torch.Tensor, code: IndexCode
) -> tuple[torch.Tensor | Quantized, tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, Any]]:
    """The result, not set, and its tensors where the kernel takes them: rotated, codes, packed, scale."""
    tokens, heads, width = q.shape
    if code == "none":
        rotated = torch.empty_like(q, memory_format=torch.contiguous_format)
        return rotated, (rotated, None, None, None)
    if code == "fp8":
        codes = q.new_empty(q.shape, dtype=torch.float8_e4m3fn)
        scale = q.new_empty((tokens, heads, 1), dtype=torch.float8_e8m0fnu)
        return Quantized(codes, scale, width), (None, codes, None, scale)
    packed = q.new_empty((tokens, heads, width // 2), dtype=torch.uint8)
    scale = q.new_empty((tokens, heads, width // FP4_BLOCK), dtype=torch.float8_e8m0fnu)
    return Quantized(packed, scale, FP4_BLOCK), (None, None, packed, scale)


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


def _serves_folded(
    q: torch.Tensor, cos_sin: torch.Tensor, weights: torch.Tensor, *, scale: float, **options: Any
) -> Served | None:
    fold = FOLDED_DTYPES.get(weights.dtype)
    return None if fold is None else _serves(q, cos_sin, stage_dtype=None, fold=fold, **options)


def _call_folded(
    kernel: Callable[..., None],
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: float,
    code: IndexCode,
    **_: object,
) -> tuple[torch.Tensor | Quantized, torch.Tensor]:
    made, outputs = _outputs(q, code)
    folded = q.new_empty(weights.shape, dtype=torch.float32)
    wide = weights.dtype == torch.float32
    kernel(q, cos_sin, weights if wide else None, None if wide else weights, *outputs, folded, scale)
    return made, folded


def _rebuild_folded(
    tensors: list[torch.Tensor], options: dict[str, Any]
) -> tuple[torch.Tensor | Quantized, torch.Tensor]:
    return _rebuild(tensors, options), tensors[-1]


_folded = Operator(
    "indexer_q_folded",
    reference.indexer_q_folded,
    "q: float [T, h, D]",
    "cos_sin: wide [T, r]",
    "weights: float [T, h]",
    kernel=KernelPath(_serves_folded, _call_folded),
    rebuild=_rebuild_folded,
)


def indexer_q_folded(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: float,
    code: IndexCode = "none",
    rotate_hadamard: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor | Quantized, torch.Tensor]:
    """``indexer_q`` and the weights of its heads, one launch: what ``indexer_scores`` takes with ``folded=True``.

    Args:
        weights: float [T, h], the product of weights_proj. scale: multiplies them, 128^-½ · h^-½.
        q, cos_sin, code, rotate_hadamard, dtype, out_dtype: those of ``indexer_q``. No rounding after each step: where
            the weights are rounded too (the official code), ``indexer_scores`` does that.

    Returns the queries as ``indexer_q`` does, and the folded weights [T, h] in ``dtype``: weights · scale, with
    ``"fp8"`` times the scale of each query, which is positive and may leave the ReLU. Raises ``ContractError``.
    dsv4-reference §6.1 to §6.5.
    """
    return _folded(
        q,
        cos_sin,
        weights,
        scale=scale,
        code=code,
        rotate_hadamard=rotate_hadamard,
        dtype=dtype,
        out_dtype=out_dtype,
    )
