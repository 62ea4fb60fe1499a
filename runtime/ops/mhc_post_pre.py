"""mhc_post_pre: the output of a sub-layer spread over the residual streams, these mixed into the input of the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.mhc_post import COLUMNS_MULTIPLE
from dsv4.runtime.ops.mhc_streams import served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_post_pre as reference

TWO_LAUNCHES_FROM, TWO_LAUNCHES_FROM_WIDE, NARROW_COLUMNS = 256, 16, 4096
"""Tokens from which ``mhc_post`` and ``mhc_pre`` one after the other are faster than both in one kernel, which has
neither the roles of ``mhc_pre``'s warps nor the registers for them; ``_WIDE``: of more than so many columns. Measured
on an H100 with 4096 and 7168 columns, see docs/notes/operators_hopper.md."""


def two_launches_from(columns: int) -> int:
    """The fewest tokens with streams of ``columns`` columns that two kernels take."""
    return TWO_LAUNCHES_FROM if columns <= NARROW_COLUMNS else TWO_LAUNCHES_FROM_WIDE


def _two_serve(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    *parameters: torch.Tensor | None,
    iterations: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    **_: object,
) -> tuple[Served, ...] | None:
    if streams.shape[0] < two_launches_from(streams.shape[-1]):
        return None
    fn, base, scale, norm = parameters
    wide = [each for each in (fn, base, scale) if each is not None]
    first = served(
        streams, (update,), (post, comb), dtype=dtype, out_dtype=out_dtype, columns_multiple=COLUMNS_MULTIPLE
    )
    options = {"iterations": iterations, "norm": norm is not None}
    second = served(streams, (norm,), wide, dtype=dtype, out_dtype=out_dtype, **options)
    if first is None or second is None:
        return None
    return replace(first, op="mhc_post"), replace(second, op="mhc_pre")


def _call_two(
    first: Callable[..., None],
    second: Callable[..., None],
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    *parameters: torch.Tensor | None,
    norm_eps: float,
    eps: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    new, u, next_post, next_comb = _outputs(update, streams, post, comb)
    first(update, streams, post, comb, new)
    second(new, *parameters, u, next_post, next_comb, norm_eps, eps)
    return new, u, next_post, next_comb


def _outputs(*like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """New streams, u, post and comb for an update, streams, post and comb."""
    u, new, post, comb = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in like)
    return new, u, post, comb


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
    new, u, next_post, next_comb = _outputs(update, streams, post, comb)
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
    kernel=(KernelPath(_two_serve, _call_two), KernelPath(_serves, _call)),
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

    Few tokens are served by one kernel, many by those of the two (``two_launches_from``). Raises ``ContractError``.
    dsv4-reference §2.2, §2.3.
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
