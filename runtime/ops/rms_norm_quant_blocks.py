"""rms_norm_quant_blocks: RMSNorm, its result as codes and scales in the layout that a product takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.block_codes import empty_blocks, tile_sizes
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import rms_norm_quant_blocks as reference
from dsv4.runtime.reference.block_layouts import Format, Layout, problem

COLUMNS_MULTIPLE = 128


def _serves(
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None,
    *,
    format: Format,
    scale_layout: Layout,
    with_y: bool,
    dtype: torch.dtype,
    **_: object,
) -> Served | None:
    rows, columns = x.shape
    if not are(torch.bfloat16, x, weight) or dtype != torch.float32 or columns % COLUMNS_MULTIPLE:
        return None
    if problem(format, scale_layout, columns, input_scale):
        return None
    variant = {"format": format, "scale_layout": scale_layout, "with_y": with_y}
    return Served({"d": columns}, tile_sizes(rows, scale_layout), variant, op="rms_norm_quant")


def _call(
    kernel: Callable[..., None],
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None,
    *,
    format: Format,
    scale_layout: Layout,
    with_y: bool,
    eps: float,
    **_: object,
) -> tuple[torch.Tensor, ...]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format) if with_y else None
    codes, scale = empty_blocks(x, x.shape[1], format, scale_layout)
    kernel(x, weight, None if input_scale is None else input_scale.view(1), y, codes, scale, eps)
    return (codes, scale) if y is None else (codes, scale, y)


_operator = Operator(
    "rms_norm_quant_blocks",
    reference.rms_norm_quant_blocks,
    "x: float [T, d]",
    "weight: float [d]",
    "input_scale?: f32 []",
    kernel=KernelPath(_serves, _call),
)


def rms_norm_quant_blocks(
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    *,
    format: Format,
    scale_layout: Layout = "row_major",
    with_y: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, ...]:
    """(codes, scales) of y = RMSNorm(x) as ``quantize_blocks`` gives them, and with ``with_y`` y [T, d] behind them.

    Args:
        x: float [T, d]. weight: float [d].
        input_scale, format, scale_layout: those of ``quantize_blocks``. dtype: of the norm's arithmetic.

    Raises ``ContractError``, and ``ValueError`` for a format and a layout that do not go together. dsv4-reference §3.1,
    §4.2, §9.3, §9.4.
    """
    return _operator(
        x, weight, input_scale, format=format, scale_layout=scale_layout, with_y=with_y, eps=eps, dtype=dtype
    )
