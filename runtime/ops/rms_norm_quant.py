"""rms_norm_quant: RMSNorm with its result quantised for the next linear, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.block_codes import BLOCK, empty_codes
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import rms_norm_quant as reference
from dsv4.runtime.reference.experts import Rule
from dsv4.runtime.weight import Quantized

COLUMNS_MULTIPLE = 128


def _serves(
    x: torch.Tensor, weight: torch.Tensor, input_scale: torch.Tensor | None, *, rule: Rule, dtype: torch.dtype, **_: Any
) -> Served | None:
    rows, columns = x.shape
    if not are(torch.bfloat16, x, weight) or dtype != torch.float32 or columns % COLUMNS_MULTIPLE:
        return None
    variant = {"format": rule, "scale_layout": "row_major", "with_y": True}
    return Served({"d": columns}, {"T": rows}, variant) if rule in BLOCK else None


def _call(
    kernel: Callable[..., None],
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None,
    *,
    rule: Rule,
    eps: float,
    **_: Any,
) -> tuple[torch.Tensor, Quantized]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    codes, scale = empty_codes(x, rule)
    outer = input_scale if rule == "nvfp4" else None
    kernel(x, weight, None if outer is None else outer.view(1), y, codes, scale, eps)
    return y, Quantized(codes, scale, BLOCK[rule], outer)


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> tuple[torch.Tensor, Quantized]:
    y, codes, scale, *outer = tensors
    return y, Quantized(codes, scale, BLOCK[options["rule"]], *outer)


_operator = Operator(
    "rms_norm_quant",
    reference.rms_norm_quant,
    "x: float [T, d]",
    "weight: float [d]",
    "input_scale?: f32 []",
    kernel=KernelPath(_serves, _call),
    rebuild=_rebuild,
)


def rms_norm_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    *,
    rule: Rule,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Quantized]:
    """(y [T, d], y quantised): y = RMSNorm(x) in the dtype of x, quantised from its rounded values.

    Args:
        x: float [T, d]. weight: float [d].
        input_scale: f32 [], with ``"nvfp4"``.
        rule: ``"fp8_128"`` or ``"fp8_32"`` (E4M3 with an E8M0 scale for each 128 or 32 columns), ``"nvfp4"`` (E2M1 with
            an E4M3 scale for each 16 columns).
        dtype: of the arithmetic.

    Raises ``ContractError``, and ``ValueError`` for another rule. dsv4-reference §3.1, §4.2, §9.3, §9.4.
    """
    return _operator(x, weight, input_scale, rule=rule, eps=eps, dtype=dtype)
