"""quantize_blocks: rows as codes and scales in the layout that a product takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.block_codes import empty_blocks, tile_sizes
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import quantize_blocks as reference
from dsv4.runtime.reference.block_layouts import Format, Layout, problem

COLUMNS_MULTIPLE = 128


def _serves(
    x: torch.Tensor, input_scale: torch.Tensor | None, *, format: Format, scale_layout: Layout
) -> Served | None:
    rows, columns = x.shape
    if not are(torch.bfloat16, x) or columns % COLUMNS_MULTIPLE or problem(format, scale_layout, columns, input_scale):
        return None
    variant = {"format": format, "scale_layout": scale_layout}
    return Served({"K": columns}, tile_sizes(rows, scale_layout), variant, op="quantize")


def _call(
    kernel: Callable[..., None],
    x: torch.Tensor,
    input_scale: torch.Tensor | None,
    *,
    format: Format,
    scale_layout: Layout,
) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = empty_blocks(x, x.shape[1], format, scale_layout)
    kernel(x, None if input_scale is None else input_scale.view(1), codes, scale)
    return codes, scale


_operator = Operator(
    "quantize_blocks",
    reference.quantize_blocks,
    "x: float [T, K]",
    "input_scale?: f32 []",
    kernel=KernelPath(_serves, _call),
)


def quantize_blocks(
    x: torch.Tensor, input_scale: torch.Tensor | None = None, *, format: Format, scale_layout: Layout = "row_major"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of x [T, K], for products of other libraries; ``quantize`` is for ``linear``.

    Args:
        x: float [T, K], K a multiple of the block (of four with tiles).
        input_scale: f32 [], with ``"nvfp4"`` alone: from 2⁻⁹⁰ to 2⁹⁰.
        format: ``"fp8_128"``, ``"fp8_32"`` (MXFP8): E4M3 [T, K] with an E8M0 scale for each 128 or 32 columns.
            ``"mxfp4"``, ``"nvfp4"``: u8 [T, K/2], the even column in the low nibble, with an E8M0 scale for each 32 or
            an E4M3 scale for each 16 columns.
        scale_layout: ``"row_major"`` [T, blocks]; ``"swizzled_128x4"`` [⌈T/128⌉, 128 · blocks], tiles for tensor
            cores, 0 where there is no row; ``"m_major"`` f32 [blocks, T] with ``"fp8_128"``, rows aligned to 16 bytes.

    Raises ``ContractError``, and ``ValueError`` for a format and a layout that do not go together. dsv4-reference §4.2,
    §9.3, §9.4.
    """
    return _operator(x, input_scale, format=format, scale_layout=scale_layout)
