"""topk: the entries with the highest scores."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import topk as reference

_operator = Operator("topk", reference.topk, "scores: float [T, E]", "visible: int [T]", dynamic=("T", "E"))


def topk(scores: torch.Tensor, visible: torch.Tensor, *, k: int) -> torch.Tensor:
    """i32 [T, k]: entries by descending score, equal ones by ascending index; −1 where a row has fewer than k visible.

    scores float [T, E], of which row t may see the first ``visible[t]``. Raises ``ContractError``. dsv4-reference §6.4.
    """
    return _operator(scores, visible, k=k)
