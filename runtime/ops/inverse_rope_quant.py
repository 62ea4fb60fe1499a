"""inverse_rope_quant: the attention output rotated back, grouped, quantised on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import inverse_rope_quant as reference
from dsv4.runtime.weight import Quantized

WIDTH, ROTARY, BLOCK = 512, 64, 128


def _serves(
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    quantize: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Served | None:
    tokens, heads, width = out.shape
    narrow = are(torch.bfloat16, out) and (quantize or out_dtype in (None, torch.bfloat16))
    if not narrow or not are(torch.float32, cos_sin) or dtype != torch.float32:
        return None
    if width != WIDTH or cos_sin.shape[1] != ROTARY or heads % groups:
        return None
    variant = {"output": "fp8" if quantize else "bf16", "scale_layout": "row_major"}
    return Served({"H": heads, "G": groups}, {"T": tokens, "TP": 0}, variant)


def _call(
    kernel: Callable[..., None],
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    quantize: bool,
    **_: object,
) -> torch.Tensor | Quantized:
    tokens, heads, width = out.shape
    shape = (tokens, groups, heads // groups * width)
    if not quantize:
        grouped = out.new_empty(shape)
        kernel(out, cos_sin, grouped, None, None, None, None)
        return grouped
    codes = out.new_empty(shape, dtype=torch.float8_e4m3fn)
    scale = out.new_empty((*shape[:2], shape[2] // BLOCK), dtype=torch.float8_e8m0fnu)
    kernel(out, cos_sin, None, codes, scale, None, None)
    return Quantized(codes, scale, BLOCK)


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor | Quantized:
    return Quantized(tensors[0], tensors[1], BLOCK) if options["quantize"] else tensors[0]


_operator = Operator(
    "inverse_rope_quant",
    reference.inverse_rope_quant,
    "out: float [T, H, D]",
    "cos_sin: wide [T, r]",
    kernel=KernelPath(_serves, _call),
    rebuild=_rebuild,
)


def inverse_rope_quant(
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    quantize: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """out [T, H, D] as [T, G, H/G·D], plain in ``out_dtype`` or E4M3 with an E8M0 scale for each 128 columns.

    cos_sin [T, r] is ``rope_table`` of the queries' positions, applied with the opposite sign. Raises
    ``ContractError``. dsv4-reference §3.5, §8.
    """
    return _operator(out, cos_sin, groups=groups, quantize=quantize, dtype=dtype, out_dtype=out_dtype)
