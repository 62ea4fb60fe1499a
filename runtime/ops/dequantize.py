"""dequantize: the values of codes and their scales."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime import contract
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import dequantize as reference
from dsv4.runtime.weight import Quantized

COLUMNS_MULTIPLE = 128
FORMATS = {
    (torch.float8_e4m3fn, 128): "fp8_128",
    (torch.float8_e4m3fn, 32): "fp8_32",
    (torch.uint8, 32): "mxfp4",
    (torch.uint8, 16): "nvfp4",
}


def _serves(x: Quantized, *, out_dtype: torch.dtype) -> Served | None:
    format = FORMATS.get((x.codes.dtype, x.block))
    if format is None or out_dtype != torch.bfloat16 or x.width % COLUMNS_MULTIPLE:
        return None
    rows = x.codes.numel() // x.codes.shape[-1]
    return Served({"K": x.width}, {"T": rows}, {"format": format, "scale_layout": "row_major"})


def _call(kernel: Callable[..., None], x: Quantized, *, out_dtype: torch.dtype) -> torch.Tensor:
    values = x.codes.new_empty((*x.codes.shape[:-1], x.width), dtype=out_dtype)
    outer = None if x.scale_2 is None else x.scale_2.view(1)
    rows = [tensor.view(-1, tensor.shape[-1]) for tensor in (x.codes, x.scale, values)]
    kernel(rows[0], rows[1], outer, rows[2])
    return values


_operator = Operator(
    "dequantize", reference.dequantize, "x: activation [.., K]", dynamic=(), kernel=KernelPath(_serves, _call)
)


def dequantize(x: Quantized, *, out_dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """x [.., K] in ``out_dtype``: codes times scales.

    Args:
        x: E4M3 with E8M0 scales by 128 or 32 columns, E2M1 with E8M0 by 32 or with E4M3 by 16 and ``scale_2``.

    Raises ``ContractError``. dsv4-reference §4.2, §9.3, §9.4.
    """
    if not isinstance(x, Quantized):
        raise contract.refusal("dequantize", "x", type(x).__name__, "Quantized")
    return _operator(x, out_dtype=out_dtype)
