"""attention_combine: attention over parts of the keys put together."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import attention_combine as reference

_operator = Operator(
    "attention_combine",
    reference.attention_combine,
    "parts: float [P, T, H, D]",
    "part_lse: wide [P, T, H]",
    "sink?: wide [H]",
    dynamic=("P", "T"),
)


def attention_combine(
    parts: torch.Tensor,
    part_lse: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [T, H, D], lse [T, H]) of parts [P, T, H, D] without sink and their lse [P, T, H]; the sink is applied once.

    A part without keys has lse −∞. Raises ``ContractError``. dsv4-reference §7.2.
    """
    return _operator(parts, part_lse, sink, dtype=dtype, out_dtype=out_dtype)
