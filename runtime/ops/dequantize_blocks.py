"""dequantize_blocks: the values of codes and of scales in the layout of a product."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.block_codes import tile_sizes
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import dequantize_blocks as reference
from dsv4.runtime.reference.block_layouts import FORMATS, Format, Layout, problem

COLUMNS_MULTIPLE = 128


def _columns(codes: torch.Tensor) -> int:
    return codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)


def _serves(
    codes: torch.Tensor,
    scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    *,
    format: Format,
    scale_layout: Layout,
    out_dtype: torch.dtype,
) -> Served | None:
    columns = _columns(codes)
    if out_dtype != torch.bfloat16 or columns % COLUMNS_MULTIPLE or problem(format, scale_layout, columns, input_scale):
        return None
    if codes.dtype != FORMATS[format].code_dtype:
        return None
    variant = {"format": format, "scale_layout": scale_layout}
    return Served({"K": columns}, tile_sizes(codes.shape[0], scale_layout), variant, op="dequantize")


def _call(
    kernel: Callable[..., None],
    codes: torch.Tensor,
    scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    *,
    out_dtype: torch.dtype,
    **_: object,
) -> torch.Tensor:
    x = codes.new_empty((codes.shape[0], _columns(codes)), dtype=out_dtype)
    kernel(codes, scale, None if input_scale is None else input_scale.view(1), x)
    return x


_operator = Operator(
    "dequantize_blocks",
    reference.dequantize_blocks,
    "codes: codes [T, c]",
    "scale: scales [a, b]",
    "input_scale?: f32 []",
    dynamic=("T", "a", "b"),
    kernel=KernelPath(_serves, _call),
)


def dequantize_blocks(
    codes: torch.Tensor,
    scale: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    *,
    format: Format,
    scale_layout: Layout = "row_major",
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x [T, K] in ``out_dtype``: codes times scales, as ``quantize_blocks`` gives them (its arguments' words).

    Raises ``ContractError``, and ``ValueError`` for a format and a layout that do not go together. dsv4-reference §4.2,
    §9.3, §9.4.
    """
    return _operator(codes, scale, input_scale, format=format, scale_layout=scale_layout, out_dtype=out_dtype)
