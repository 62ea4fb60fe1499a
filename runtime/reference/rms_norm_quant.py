"""RMSNorm and the quantisation of its bf16 result for the next linear: the composition of the two (§3.1, §4.2, §9)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.experts import Rule
from dsv4.runtime.reference.quantize import quantize_fp8, quantize_nvfp4
from dsv4.runtime.reference.rms_norm import rms_norm
from dsv4.runtime.weight import Quantized


def rms_norm_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    *,
    rule: Rule,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Quantized]:
    """(y, y quantised): y [.., d] = RMSNorm(x) with ``weight`` [d] in the dtype of x, quantised as it is rounded.

    ``rule``: fp8_128, fp8_32, or nvfp4 with ``input_scale`` (f32, one element). Raises ``ValueError`` for others.
    """
    y = rms_norm(x, weight, eps, dtype=dtype)
    if rule == "nvfp4" and input_scale is not None:
        return y, quantize_nvfp4(y, input_scale.view(()))
    if rule not in ("fp8_128", "fp8_32"):
        raise ValueError(f"rule: found {rule!r}; valid: fp8_128, fp8_32, or nvfp4 with an input_scale")
    return y, quantize_fp8(y, 128 if rule == "fp8_128" else 32)
