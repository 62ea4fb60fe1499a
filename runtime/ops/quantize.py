"""quantize: an activation as the next linear takes it."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference.experts import Rule, quantized_by
from dsv4.runtime.weight import Quantized, Weight


def _reference(x: torch.Tensor, weight: Weight, *, rule: Rule) -> Quantized:
    quantized = quantized_by(rule, x, weight)
    assert isinstance(quantized, Quantized)
    return quantized


_operator = Operator("quantize", _reference, "x: float [.., i]", "weight: weight [o, i]")


def quantize(x: torch.Tensor, weight: Weight, *, rule: Rule) -> torch.Tensor | Quantized:
    """x [.., in] quantised by ``rule`` for the linear with ``weight`` [out, in]; x itself for ``"none"``.

    ``"fp8_128"`` and ``"fp8_32"``: E4M3 with an E8M0 scale for each 128 or 32 columns. ``"nvfp4"``: E2M1 with an E4M3
    scale for each 16 columns and the weight's input scale; raises ``ValueError`` where the weight has none. Raises
    ``ContractError``. dsv4-reference §4.2, §9.3, §9.4.
    """
    return x if rule == "none" else _operator(x, weight, rule=rule)
