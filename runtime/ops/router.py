"""router: the experts of each token and their weights."""

from __future__ import annotations

from typing import Any

import torch

from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import router as reference


def _reference(
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    tokens: torch.Tensor | None,
    *,
    k: int,
    factor: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.router(y, weight, k=k, factor=factor, bias=bias, tid2eid=tid2eid, tokens=tokens, dtype=dtype)


def _check_values(op: str, values: dict[str, Any]) -> None:
    if values["tid2eid"] is not None:
        in_range(op, "tokens", values["tokens"], 0, values["tid2eid"].shape[0])
        in_range(op, "tid2eid", values["tid2eid"], 0, values["weight"].shape[0])


_operator = Operator(
    "router",
    _reference,
    "y: float [T, d]",
    "weight: float [E, d]",
    "bias?: wide [E]",
    "tid2eid?: int [V, k]",
    "tokens?: int [T]",
    check_values=_check_values,
)


def router(
    y: torch.Tensor,
    weight: torch.Tensor,
    *,
    k: int,
    factor: float,
    bias: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts i32 [T, k], weights [T, k] in ``dtype``).

    Args:
        y: float [T, d], the normalised input. weight: float [E, d].
        k: experts a token. factor: what the weights of a token sum to.
        bias: [E], added for the choice alone (dense layers).
        tid2eid, tokens: int [V, k] and [T]: the choice by token (hash layers); given together.

    Raises ``ContractError``. dsv4-reference §9.1.
    """
    return _operator(y, weight, bias, tid2eid, tokens, k=k, factor=factor, dtype=dtype)
