"""swiglu_quant_blocks: the activation of an expert as codes and scales in the layout that a product takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.block_codes import empty_blocks, tile_sizes
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import swiglu_quant_blocks as reference
from dsv4.runtime.reference.block_layouts import Format, Layout, problem

COLUMNS_MULTIPLE = 128


def _serves(
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None,
    input_scale: torch.Tensor | None,
    *,
    format: Format,
    scale_layout: Layout,
    interleaved: bool,
    dtype: torch.dtype,
    **_: object,
) -> Served | None:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if not are(torch.bfloat16, gate_up) or not are(torch.float32, route_weight) or dtype != torch.float32:
        return None
    if width % COLUMNS_MULTIPLE or problem(format, scale_layout, width, input_scale):
        return None
    variant = {
        "gate_up_layout": "interleaved_8" if interleaved else "halves",
        "weighted": route_weight is not None,
        "format": format,
        "scale_layout": scale_layout,
    }
    return Served({"I": width}, tile_sizes(rows, scale_layout), variant, op="swiglu_quant")


def _call(
    kernel: Callable[..., None],
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None,
    input_scale: torch.Tensor | None,
    *,
    limit: float,
    format: Format,
    scale_layout: Layout,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = empty_blocks(gate_up, gate_up.shape[1] // 2, format, scale_layout)
    outer = None if input_scale is None else input_scale.view(1)
    kernel(gate_up, None, None, route_weight, outer, None, codes, scale, limit)
    return codes, scale


_operator = Operator(
    "swiglu_quant_blocks",
    reference.swiglu_quant_blocks,
    "gate_up: float [S, J]",
    "route_weight?: float [S]",
    "input_scale?: f32 []",
    dynamic=("S",),
    kernel=KernelPath(_serves, _call),
)


def swiglu_quant_blocks(
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    *,
    limit: float,
    format: Format,
    scale_layout: Layout = "row_major",
    interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of h = silu(min(gate, limit)) · clamp(up, ±limit) · route_weight, as ``quantize_blocks`` gives
    them, from values that were not rounded before.

    Args:
        gate_up: float [S, 2·I], gates and then ups, or ``interleaved`` in runs of 8 of either by turns.
        route_weight: float [S], or none. limit: 10 in DSV4.
        input_scale, format, scale_layout: those of ``quantize_blocks``. dtype: of the arithmetic.

    Raises ``ContractError``, and ``ValueError`` for a format and a layout that do not go together. dsv4-reference §9.2
    to §9.4.
    """
    return _operator(
        gate_up,
        route_weight,
        input_scale,
        limit=limit,
        format=format,
        scale_layout=scale_layout,
        interleaved=interleaved,
        dtype=dtype,
    )
