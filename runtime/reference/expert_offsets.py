"""Where each route of a token to an expert lies when the routes are sorted by expert, for grouped products."""

from __future__ import annotations

from typing import NamedTuple

import torch


class ExpertOffsets(NamedTuple):
    """``counts`` i32 [E]: routes of each expert. ``offsets`` i32 [E + 1]: its first row, a multiple of ``align``; the
    last is the end of all. ``route_row`` i32 [T, k]: the row of each route, −1 for none. ``row_token`` i32 [rows]: the
    token of each row, −1 for padding."""

    counts: torch.Tensor
    offsets: torch.Tensor
    route_row: torch.Tensor
    row_token: torch.Tensor


def padded_rows(tokens: int, k: int, experts: int, align: int) -> int:
    """Rows that suffice for any choice: T · k + E · (align − 1), rounded up to ``align``."""
    return -(-(tokens * k + experts * (align - 1)) // align) * align


def expert_offsets(experts: torch.Tensor, *, count: int, align: int) -> ExpertOffsets:
    """experts i32 [T, k], each −1 (no route) or below ``count``: the permutation that sorts the routes by expert.

    An expert's routes keep their order (by token, then by place), each expert starts at a multiple of ``align``.
    Nothing is read on the host: routes to none are sorted behind all others and written to a row that is cut off.
    """
    tokens, k = experts.shape
    flat = experts.flatten().long()
    flat = flat.masked_fill(flat < 0, count)
    with_none = flat.new_zeros(count + 1).scatter_add(0, flat, torch.ones_like(flat))
    counts = with_none[:count]
    sizes = (counts + align - 1) // align * align
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    sorted_experts, order = torch.sort(flat, stable=True)
    before = with_none.cumsum(0) - with_none
    rows = offsets[sorted_experts] + torch.arange(tokens * k, device=flat.device) - before[sorted_experts]
    is_none = sorted_experts == count
    route_row = torch.empty_like(flat).scatter(0, order, rows.masked_fill(is_none, -1))
    end = padded_rows(tokens, k, count, align)
    row_token = flat.new_full((end + 1,), -1).scatter(0, rows.masked_fill(is_none, end), order // k)[:end]
    found = (counts, offsets, route_row.view(tokens, k), row_token)
    return ExpertOffsets(*(each.to(torch.int32) for each in found))
