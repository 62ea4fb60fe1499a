"""experts: every token through the experts that the router chose."""

from __future__ import annotations

from typing import Any

import torch

from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import experts as reference
from dsv4.runtime.reference.experts import Rule
from dsv4.runtime.weight import Weight


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "ids", values["ids"], 0, values["w1"].shape[0])


_operator = Operator(
    "experts",
    reference.experts,
    "y: float [T, d]",
    "ids: int [T, k]",
    "route_weights: wide [T, k]",
    "w1: weight [E, I, d]",
    "w3: weight [E, I, d]",
    "w2: weight [E, d, I]",
    check_values=_check_values,
)


def experts(
    y: torch.Tensor,
    ids: torch.Tensor,
    route_weights: torch.Tensor,
    w1: Weight,
    w3: Weight,
    w2: Weight,
    *,
    limit: float,
    rule: Rule = "none",
    stage_dtype: torch.dtype | None = None,
    round_hidden: bool = False,
    sync_free: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Each route's result, already weighted: [T, k, d] in ``out_dtype`` (default: that of y).

    Args:
        y: float [T, d], the normalised input. ids, route_weights: [T, k] from ``router``.
        w1, w3, w2: stacks of E weights: gate and up [E, I, d], down [E, d, I].
        limit: of the SwiGLU clamps. rule: how activations are quantised before each product.
        stage_dtype: what the products of w1 and w3 are rounded to. round_hidden: round the SwiGLU's result to it too.
        sync_free: never wait for the device; slower for many tokens.
        dtype: of the arithmetic.

    Raises ``ContractError``. dsv4-reference §9.2 to §9.4.
    """
    return _operator(
        y,
        ids,
        route_weights,
        w1,
        w3,
        w2,
        limit=limit,
        rule=rule,
        stage_dtype=stage_dtype,
        round_hidden=round_hidden,
        sync_free=sync_free,
        dtype=dtype,
        out_dtype=out_dtype,
    )
