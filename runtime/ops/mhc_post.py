"""mhc_post: the output of a sub-layer spread over the residual streams."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.mhc_streams import served
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_post as reference

COLUMNS_MULTIPLE = 256


def _serves(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Served | None:
    return served(streams, (update,), (post, comb), dtype=dtype, out_dtype=out_dtype, columns_multiple=COLUMNS_MULTIPLE)


def _call(
    kernel: Callable[..., None],
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    **_: object,
) -> torch.Tensor:
    new_streams = torch.empty_like(streams, memory_format=torch.contiguous_format)
    kernel(update, streams, post, comb, new_streams)
    return new_streams


_operator = Operator(
    "mhc_post",
    reference.mhc_post,
    "update: float [T, d]",
    "streams: float [T, n, d]",
    "post: wide [T, n]",
    "comb: wide [T, n, n]",
    kernel=KernelPath(_serves, _call),
)


def mhc_post(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The next streams [T, n, d]: post ⊗ update + combᵀ · streams.

    Args:
        update: float [T, d], what the sub-layer gave.
        streams: float [T, n, d], those that ``mhc_pre`` took.
        post, comb: [T, n] and [T, n, n] from ``mhc_pre``.
        dtype: of the arithmetic. out_dtype: of the result, by default that of ``streams``.

    Raises ``ContractError``. dsv4-reference §2.3.
    """
    return _operator(update, streams, post, comb, dtype=dtype, out_dtype=out_dtype)
