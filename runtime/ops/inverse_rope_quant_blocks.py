"""inverse_rope_quant_blocks: the attention output rotated back, as codes and scales for a grouped product."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.inverse_rope_quant import ROTARY, WIDTH
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import inverse_rope_quant_blocks as reference
from dsv4.runtime.reference.inverse_rope_quant_blocks import HEAD_SCALES, ROWS_MULTIPLE, GroupedLayout

LAYOUTS = ("m_major_f32", "m_major_packed")


def _padded(tokens: int) -> int:
    return -(-tokens // ROWS_MULTIPLE) * ROWS_MULTIPLE


def _serves(
    out: torch.Tensor, cos_sin: torch.Tensor, *, groups: int, scale_layout: GroupedLayout, dtype: torch.dtype
) -> Served | None:
    tokens, heads, width = out.shape
    if not are(torch.bfloat16, out) or not are(torch.float32, cos_sin) or dtype != torch.float32:
        return None
    if width != WIDTH or cos_sin.shape[1] != ROTARY or heads % groups or scale_layout not in LAYOUTS:
        return None
    variant = {"output": "fp8", "scale_layout": scale_layout}
    sizes = {"T": tokens, "TP": _padded(tokens)}
    return Served({"H": heads, "G": groups}, sizes, variant, op="inverse_rope_quant")


def _call(
    kernel: Callable[..., None],
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    scale_layout: GroupedLayout,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, width = out.shape
    codes = out.new_empty((tokens, groups, heads // groups * width), dtype=torch.float8_e4m3fn)
    if scale_layout == "m_major_f32":
        scale = out.new_empty((groups, heads // groups * HEAD_SCALES, _padded(tokens)), dtype=torch.float32)
        kernel(out, cos_sin, None, codes, None, scale, None)
    else:
        scale = out.new_empty((groups, heads // groups, _padded(tokens)), dtype=torch.int32)
        kernel(out, cos_sin, None, codes, None, None, scale)
    return codes, scale


_operator = Operator(
    "inverse_rope_quant_blocks",
    reference.inverse_rope_quant_blocks,
    "out: float [T, H, D]",
    "cos_sin: wide [T, r]",
    kernel=KernelPath(_serves, _call),
)


def inverse_rope_quant_blocks(
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    scale_layout: GroupedLayout,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes E4M3 [T, G, H/G·512], scales) of out [T, H, 512], for grouped products of other libraries (``wo_a``).

    Args:
        cos_sin: [T, r], ``rope_table`` of the queries' positions, applied with the opposite sign.
        scale_layout: ``"m_major_f32"``: values f32 [G, H/G·4, T'], T' = T rounded up to 4; ``"m_major_packed"``: i32
            [G, H/G, T'], four E8M0 codes of a head, the first in the lowest byte. 0 for tokens past the last.

    Raises ``ContractError``, and ``ValueError`` for another layout. dsv4-reference §3.5, §8.
    """
    return _operator(out, cos_sin, groups=groups, scale_layout=scale_layout, dtype=dtype)
