"""swiglu_quant: the clamped activation of an expert, quantised on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops.block_codes import empty_codes
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import swiglu_quant as reference
from dsv4.runtime.weight import Quantized

_operator = Operator(
    "swiglu_quant",
    reference.swiglu_quant,
    "gate: float [T, I]",
    "up: float [T, I]",
    "route_weight?: wide [T]",
)


def swiglu_quant(
    gate: torch.Tensor,
    up: torch.Tensor,
    route_weight: torch.Tensor | None = None,
    *,
    limit: float,
    block: int = 0,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """silu(min(gate, limit)) · clamp(up, ±limit) · route_weight: gate and up float [T, I], route_weight [T] or none.

    Plain in ``out_dtype`` (default: that of gate), or with ``block`` 32 or 128 E4M3 with an E8M0 scale for each
    ``block`` columns. ``dtype`` is that of the arithmetic. Raises ``ContractError``. dsv4-reference §9.2.
    """
    return _operator(gate, up, route_weight, limit=limit, block=block, dtype=dtype, out_dtype=out_dtype)


COLUMNS_MULTIPLE = 128
FORMATS = {0: "bf16", 32: "fp8_32", 128: "fp8_128"}


def _serves(
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None,
    *,
    block: int,
    interleaved: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    **_: object,
) -> Served | None:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    narrow = are(torch.bfloat16, gate_up) and (block != 0 or out_dtype in (None, torch.bfloat16))
    if not narrow or not are(torch.float32, route_weight) or dtype != torch.float32:
        return None
    if block not in FORMATS or gate_up.shape[1] % (2 * COLUMNS_MULTIPLE):
        return None
    layout = "interleaved_8" if interleaved else "halves"
    variant: dict[str, Scalar] = {
        "gate_up_layout": layout,
        "weighted": route_weight is not None,
        "format": FORMATS[block],
        "scale_layout": "row_major",
    }
    return Served({"I": width}, {"T": rows}, variant, op="swiglu_quant")


def _call(
    kernel: Callable[..., None],
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None,
    *,
    limit: float,
    block: int,
    **_: object,
) -> torch.Tensor | Quantized:
    width = gate_up.shape[1] // 2
    if block == 0:
        h = gate_up.new_empty((gate_up.shape[0], width))
        kernel(gate_up, route_weight, None, h, None, None, limit)
        return h
    codes, scale = empty_codes(gate_up, "fp8_128" if block == 128 else "fp8_32", width)
    kernel(gate_up, route_weight, None, None, codes, scale, limit)
    return Quantized(codes, scale, block)


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor | Quantized:
    return Quantized(tensors[0], tensors[1], options["block"]) if options["block"] else tensors[0]


_joined = Operator(
    "swiglu_quant_joined",
    reference.swiglu_quant_joined,
    "gate_up: float [T, w]",
    "route_weight?: wide [T]",
    kernel=KernelPath(_serves, _call),
    rebuild=_rebuild,
)


def swiglu_quant_joined(
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None = None,
    *,
    limit: float,
    block: int = 0,
    interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """``swiglu_quant`` of one product: gate_up float [T, 2·I], the gates and then the ups.

    ``interleaved``: runs of 8 gates and 8 ups by turns. The other arguments, the result and what is raised are those of
    ``swiglu_quant``. dsv4-reference §9.2, §9.5.
    """
    return _joined(
        gate_up,
        route_weight,
        limit=limit,
        block=block,
        interleaved=interleaved,
        dtype=dtype,
        out_dtype=out_dtype,
    )
