"""expert_offsets: where each route of a token to an expert lies when the routes are sorted by expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import expert_offsets as reference
from dsv4.runtime.reference.expert_offsets import ExpertOffsets, padded_rows

CTA_ROUTES = 4096
"""Routes that a CTA takes; more than one tell each other their counts."""


def _serves(experts: torch.Tensor, *, count: int, align: int) -> Served:
    tokens, k = experts.shape
    return Served({"k": k, "E": count, "align_m": align}, {"T": tokens}, {})


def _call(kernel: Callable[..., None], experts: torch.Tensor, *, count: int, align: int) -> ExpertOffsets:
    tokens, k = experts.shape
    found = ExpertOffsets(
        counts=experts.new_empty(count),
        offsets=experts.new_empty(count + 1),
        route_row=experts.new_empty((tokens, k)),
        row_token=experts.new_empty(padded_rows(tokens, k, count, align)),
    )
    kernel(experts, *found, experts.new_empty((-(-tokens * k // CTA_ROUTES), count)))
    return found


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> ExpertOffsets:
    return ExpertOffsets(*tensors)


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "experts", values["experts"], -1, values["count"])


_operator = Operator(
    "expert_offsets",
    reference.expert_offsets,
    "experts: i32 [T, k]",
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
    rebuild=_rebuild,
)


def expert_offsets(experts: torch.Tensor, *, count: int, align: int) -> ExpertOffsets:
    """The permutation that sorts the routes of tokens by expert, for products grouped by expert.

    Args:
        experts: i32 [T, k], each −1 (no route) or below ``count`` (checked in debug mode).
        count: experts. align: each expert's rows start at a multiple of it.

    An expert's routes keep their order (by token, then by place). Raises ``ContractError``.
    """
    return _operator(experts, count=count, align=align)
