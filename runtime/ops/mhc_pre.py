"""mhc_pre: the residual streams mixed into the input of a sub-layer."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_pre as reference

_operator = Operator(
    "mhc_pre",
    reference.mhc_pre,
    "streams: float [T, n, d]",
    "fn: wide [m, n*d]",
    "base: wide [m]",
    "scale: wide [3]",
)


def mhc_pre(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    *,
    norm_eps: float = 1e-6,
    eps: float = 1e-6,
    iterations: int = 20,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(u [T, d], post [T, n], comb [T, n, n]) from streams [T, n, d] and the float32 parameters of one use of mHC.

    Args:
        streams: float [T, n, d].
        fn, base, scale: [(2 + n)·n, n·d], [(2 + n)·n], [3].
        norm_eps: of the normalisation of the streams. eps: of the Sinkhorn steps and of pre.
        iterations: column steps of the Sinkhorn normalisation.
        dtype: of the arithmetic, of post and of comb. out_dtype: of u, by default that of ``streams``.

    comb's first index is the source stream. Raises ``ContractError``. dsv4-reference §2.2.
    """
    return _operator(
        streams, fn, base, scale, norm_eps=norm_eps, eps=eps, iterations=iterations, dtype=dtype, out_dtype=out_dtype
    )
