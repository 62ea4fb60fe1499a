"""rms_norm for rows or arithmetic in float32 and float64, which no kernel serves: the exact model, and oracles."""

from __future__ import annotations

import torch

from dsv4.runtime import contract
from dsv4.runtime.ops import rms_norm as narrow
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import rms_norm as reference

_operator = Operator(narrow.OP, reference.rms_norm, "x: float [.., d]", "weight: float [d]")


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """weight · x / √(mean(x²) + eps) in the dtype of x.

    x bf16 [.., d] with ``dtype`` float32 goes to ``ops.rms_norm``, whose contract it must meet (weight bf16). All else,
    x and weight [d] in any float dtype, is computed in ``dtype``. Raises ``ContractError``. dsv4-reference §3.1.
    """
    contract.require_tensor(narrow.OP, "x", x)
    if x.dtype == torch.bfloat16 and dtype == torch.float32:
        return narrow.rms_norm(x, weight, eps)
    return _operator(x, weight, eps=eps, dtype=dtype)
