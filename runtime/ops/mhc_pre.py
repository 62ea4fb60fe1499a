"""mhc_pre: the residual streams mixed into the input of a sub-layer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.mhc_streams import served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_pre as reference


def _serves(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None,
    *,
    iterations: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    **_: object,
) -> Served | None:
    options = {"iterations": iterations, "norm": norm is not None}
    return served(streams, (norm,), (fn, base, scale), dtype=dtype, out_dtype=out_dtype, **options)


def _call(
    kernel: Callable[..., None],
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None,
    *,
    norm_eps: float,
    eps: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, count, columns = streams.shape
    u = streams.new_empty((tokens, columns))
    post, comb = fn.new_empty((tokens, count)), fn.new_empty((tokens, count, count))
    kernel(streams, fn, base, scale, norm, u, post, comb, norm_eps, eps)
    return u, post, comb


_operator = Operator(
    "mhc_pre",
    reference.mhc_pre,
    "streams: float [T, n, d]",
    "fn: wide [m, n*d]",
    "base: wide [m]",
    "scale: wide [3]",
    "norm?: float [d]",
    kernel=KernelPath(_serves, _call),
)


def mhc_pre(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None = None,
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
        norm: float [d], the weight of the RMSNorm that follows: with it u is normalised, from its rounded values.
        norm_eps: of the normalisation of the streams, and of u. eps: of the Sinkhorn steps and of pre.
        iterations: column steps of the Sinkhorn normalisation.
        dtype: of the arithmetic, of post and of comb. out_dtype: of u, by default that of ``streams``.

    comb's first index is the source stream. Raises ``ContractError``. dsv4-reference §2.2.
    """
    return _operator(
        streams,
        fn,
        base,
        scale,
        norm,
        norm_eps=norm_eps,
        eps=eps,
        iterations=iterations,
        dtype=dtype,
        out_dtype=out_dtype,
    )
