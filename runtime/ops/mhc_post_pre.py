"""mhc_post_pre: the output of a sub-layer spread over the residual streams, these mixed into the input of the next."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.mhc_streams import served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_post_pre as reference


def _serves(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
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
    parameters = post, comb, fn, base, scale
    options = {"iterations": iterations, "norm": norm is not None}
    return served(streams, (update, norm), parameters, dtype=dtype, out_dtype=out_dtype, **options)


def _call(
    kernel: Callable[..., None],
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None,
    *,
    norm_eps: float,
    eps: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    new, u = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in (streams, update))
    next_post, next_comb = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in (post, comb))
    kernel(update, streams, post, comb, fn, base, scale, norm, new, u, next_post, next_comb, norm_eps, eps)
    return new, u, next_post, next_comb


_operator = Operator(
    "mhc_post_pre",
    reference.mhc_post_pre,
    "update: float [T, d]",
    "streams: float [T, n, d]",
    "post: wide [T, n]",
    "comb: wide [T, n, n]",
    "fn: wide [m, n*d]",
    "base: wide [m]",
    "scale: wide [3]",
    "norm?: float [d]",
    kernel=KernelPath(_serves, _call),
)


def mhc_post_pre(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(new streams [T, n, d], u [T, d], post [T, n], comb [T, n, n]): ``mhc_post``, then ``mhc_pre`` of its result.

    Args:
        update, streams, post, comb: as in ``mhc_post``.
        fn, base, scale, norm: of the next sub-layer, as in ``mhc_pre``; so are the options.

    Raises ``ContractError``. dsv4-reference §2.2, §2.3.
    """
    return _operator(
        update,
        streams,
        post,
        comb,
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
