"""mhc_head: the residual streams mixed into the input of the LM head."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.mhc_streams import served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_head as reference


def _serves(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    **_: object,
) -> Served | None:
    return served(streams, (norm,), (fn, base, scale), dtype=dtype, out_dtype=out_dtype, norm=norm is not None)


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
) -> torch.Tensor:
    h = streams.new_empty((streams.shape[0], streams.shape[2]))
    kernel(streams, fn, base, scale, norm, h, norm_eps, eps)
    return h


_operator = Operator(
    "mhc_head",
    reference.mhc_head,
    "streams: float [T, n, d]",
    "fn: wide [n, n*d]",
    "base: wide [n]",
    "scale: wide [1]",
    "norm?: float [d]",
    kernel=KernelPath(_serves, _call),
)


def mhc_head(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None = None,
    *,
    norm_eps: float = 1e-6,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """h [T, d] from streams [T, n, d] and the parameters fn [n, n·d], base [n], scale [1] (``hc_head_*``).

    With ``norm`` [d], the weight of the RMSNorm that follows, h is normalised, from its rounded values. ``dtype`` is
    that of the arithmetic, ``out_dtype`` that of h (default: that of ``streams``). Raises ``ContractError``.
    dsv4-reference §2.4.
    """
    return _operator(streams, fn, base, scale, norm, norm_eps=norm_eps, eps=eps, dtype=dtype, out_dtype=out_dtype)
