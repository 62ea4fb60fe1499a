"""mhc_head: the residual streams mixed into the input of the LM head."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_head as reference

_operator = Operator(
    "mhc_head",
    reference.mhc_head,
    "streams: float [T, n, d]",
    "fn: wide [n, n*d]",
    "base: wide [n]",
    "scale: wide [1]",
)


def mhc_head(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    *,
    norm_eps: float = 1e-6,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """h [T, d] from streams [T, n, d] and the parameters fn [n, n·d], base [n], scale [1] (``hc_head_*``).

    ``dtype`` is that of the arithmetic, ``out_dtype`` that of h (default: that of ``streams``). Raises
    ``ContractError``. dsv4-reference §2.4.
    """
    return _operator(streams, fn, base, scale, norm_eps=norm_eps, eps=eps, dtype=dtype, out_dtype=out_dtype)
