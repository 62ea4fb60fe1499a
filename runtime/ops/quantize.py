"""quantize: an activation as the next linear takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.block_codes import BLOCK, empty_codes
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference.experts import Rule, quantized_by
from dsv4.runtime.weight import Quantized, Weight


def _reference(x: torch.Tensor, weight: Weight, *, rule: Rule) -> Quantized:
    quantized = quantized_by(rule, x, weight)
    assert isinstance(quantized, Quantized)
    return quantized


COLUMNS_MULTIPLE = 128


def _serves(x: torch.Tensor, weight: Weight, *, rule: Rule) -> Served | None:
    columns = x.shape[-1]
    if not are(torch.bfloat16, x) or columns % COLUMNS_MULTIPLE or (rule == "nvfp4" and weight.input_scale is None):
        return None
    return Served({"K": columns}, {"T": x.numel() // columns}, {"format": rule, "scale_layout": "row_major"})


def _call(kernel: Callable[..., None], x: torch.Tensor, weight: Weight, *, rule: Rule) -> Quantized:
    codes, scale = empty_codes(x, rule)
    outer = weight.input_scale if rule == "nvfp4" else None
    rows = [tensor.view(-1, tensor.shape[-1]) for tensor in (x, codes, scale)]
    kernel(rows[0], None if outer is None else outer.view(1), rows[1], rows[2])
    return Quantized(codes, scale, BLOCK[rule], outer)


def _rebuild(tensors: list[torch.Tensor], options: dict[str, Any]) -> Quantized:
    return Quantized(tensors[0], tensors[1], BLOCK[options["rule"]], *tensors[2:])


_operator = Operator(
    "quantize",
    _reference,
    "x: float [.., i]",
    "weight: weight [o, i]",
    kernel=KernelPath(_serves, _call),
    rebuild=_rebuild,
)


def quantize(x: torch.Tensor, weight: Weight, *, rule: Rule) -> torch.Tensor | Quantized:
    """x [.., in] quantised by ``rule`` for the linear with ``weight`` [out, in]; x itself for ``"none"``.

    ``"fp8_128"`` and ``"fp8_32"``: E4M3 with an E8M0 scale for each 128 or 32 columns. ``"nvfp4"``: E2M1 with an E4M3
    scale for each 16 columns and the weight's input scale; raises ``ValueError`` where the weight has none. Raises
    ``ContractError``. dsv4-reference §4.2, §9.3, §9.4.
    """
    return x if rule == "none" else _operator(x, weight, rule=rule)
