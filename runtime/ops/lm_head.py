"""lm_head: logits over the vocabulary."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import lm_head as reference

_operator = Operator("lm_head", reference.lm_head, "h: float [T, d]", "weight: float [V, d]")


def lm_head(h: torch.Tensor, weight: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits [T, V] in ``dtype`` of h [T, d] (normalised) and weight [V, d].

    Raises ``ContractError``. dsv4-reference §10.1.
    """
    return _operator(h, weight, dtype=dtype)
