"""moe_combine: the routes of a token and the shared expert summed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import moe_combine as reference

COLUMNS_MULTIPLE = 8


def _serves(
    routed: torch.Tensor, shared: torch.Tensor, *, dtype: torch.dtype, out_dtype: torch.dtype | None
) -> Served | None:
    tokens, k, columns = routed.shape
    narrow = are(torch.bfloat16, routed, shared) and out_dtype in (None, torch.bfloat16)
    if not narrow or dtype != torch.float32 or columns % COLUMNS_MULTIPLE:
        return None
    return Served({"k": k, "d": columns}, {"T": tokens}, {"gathered": False})


def _call(kernel: Callable[..., None], routed: torch.Tensor, shared: torch.Tensor, **_: object) -> torch.Tensor:
    out = torch.empty_like(shared, memory_format=torch.contiguous_format)
    kernel(routed, None, None, shared, out)
    return out


_operator = Operator(
    "moe_combine",
    reference.moe_combine,
    "routed: float [T, k, d]",
    "shared: float [T, d]",
    kernel=KernelPath(_serves, _call),
)


def moe_combine(
    routed: torch.Tensor,
    shared: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Σ_i routed[t, i] + shared[t], [T, d] in ``out_dtype`` (default: that of shared), summed in ``dtype``.

    Raises ``ContractError``. dsv4-reference §9.2.
    """
    return _operator(routed, shared, dtype=dtype, out_dtype=out_dtype)
