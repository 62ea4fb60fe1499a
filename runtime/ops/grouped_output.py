"""grouped_output: the first half of the output projection, one matrix a group of heads (wo_a)."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import grouped_output as reference
from dsv4.runtime.weight import Quantized, Weight

_operator = Operator("grouped_output", reference.grouped_output, "out: activation [T, G, W]", "wo_a: weight [N, W]")


def grouped_output(
    out: torch.Tensor | Quantized,
    wo_a: Weight,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """z [T, G·R]: group g of out [T, G, W] through rows g·R … g·R + R − 1 of wo_a [G·R, W].

    ``dtype`` is that of the arithmetic; ``out_dtype`` by default that of out, bf16 if it is quantised. Raises
    ``ContractError``. dsv4-reference §8.
    """
    return _operator(out, wo_a, dtype=dtype, out_dtype=out_dtype)
