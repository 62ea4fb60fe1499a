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
from dsv4.runtime.reference.experts import Rule
from dsv4.runtime.weight import Quantized

COLUMNS_MULTIPLE = 128
RULES: dict[int, Rule] = {32: "fp8_32", 128: "fp8_128"}
"""Of codes, by ``block``."""


def _serves(
    activations: torch.Tensor,
    other: torch.Tensor | None,
    route_weight: torch.Tensor | None,
    layout: str,
    *,
    block: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    **_: object,
) -> Served | None:
    """``activations`` and ``other``: gates and ups, or a tensor that holds both and none."""
    rows = activations.shape[0]
    width = activations.shape[1] // (2 if other is None else 1)
    narrow = are(torch.bfloat16, activations, other) and (block != 0 or out_dtype in (None, torch.bfloat16))
    if not narrow or not are(torch.float32, route_weight) or dtype != torch.float32:
        return None
    if block not in (0, *RULES) or width % COLUMNS_MULTIPLE:
        return None
    variant: dict[str, Scalar] = {
        "gate_up_layout": layout,
        "weighted": route_weight is not None,
        "format": RULES.get(block, "bf16"),
        "scale_layout": "row_major",
    }
    return Served({"I": width}, {"T": rows}, variant, op="swiglu_quant")


def _launch(
    kernel: Callable[..., None],
    inputs: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    width: int,
    route_weight: torch.Tensor | None,
    limit: float,
    block: int,
) -> torch.Tensor | Quantized:
    """``inputs``: gate_up, gates and ups, as the kernel takes them."""
    given = next(tensor for tensor in inputs if tensor is not None)
    if block == 0:
        h = given.new_empty((given.shape[0], width))
        kernel(*inputs, route_weight, None, h, None, None, limit)
        return h
    codes, scale = empty_codes(given, RULES[block], width)
    kernel(*inputs, route_weight, None, None, codes, scale, limit)
    return Quantized(codes, scale, block)


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor | Quantized:
    return Quantized(tensors[0], tensors[1], options["block"]) if options["block"] else tensors[0]


def _serves_separate(
    gate: torch.Tensor, up: torch.Tensor, route_weight: torch.Tensor | None, **options: Any
) -> Served | None:
    return _serves(gate, up, route_weight, "separate", **options)


def _call_separate(
    kernel: Callable[..., None],
    gate: torch.Tensor,
    up: torch.Tensor,
    route_weight: torch.Tensor | None,
    *,
    limit: float,
    block: int,
    **_: object,
) -> torch.Tensor | Quantized:
    return _launch(kernel, (None, gate, up), gate.shape[1], route_weight, limit, block)


_operator = Operator(
    "swiglu_quant",
    reference.swiglu_quant,
    "gate: float [T, I]",
    "up: float [T, I]",
    "route_weight?: wide [T]",
    kernel=KernelPath(_serves_separate, _call_separate),
    rebuild=_rebuild,
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


def _serves_joined(
    gate_up: torch.Tensor, route_weight: torch.Tensor | None, *, interleaved: bool, **options: Any
) -> Served | None:
    if gate_up.shape[1] % 2:
        return None
    return _serves(gate_up, None, route_weight, "interleaved_8" if interleaved else "halves", **options)


def _call_joined(
    kernel: Callable[..., None],
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None,
    *,
    limit: float,
    block: int,
    **_: object,
) -> torch.Tensor | Quantized:
    return _launch(kernel, (gate_up, None, None), gate_up.shape[1] // 2, route_weight, limit, block)


_joined = Operator(
    "swiglu_quant_joined",
    reference.swiglu_quant_joined,
    "gate_up: float [T, w]",
    "route_weight?: wide [T]",
    kernel=KernelPath(_serves_joined, _call_joined),
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
