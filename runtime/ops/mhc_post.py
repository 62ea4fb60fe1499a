"""mhc_post: the output of a sub-layer spread over the residual streams."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import mhc_post as reference

STREAMS = 4
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
    tokens, count, columns = streams.shape
    narrow = are(torch.bfloat16, update, streams) and out_dtype in (None, torch.bfloat16)
    if not narrow or not are(torch.float32, post, comb) or dtype != torch.float32:
        return None
    if count != STREAMS or columns % COLUMNS_MULTIPLE:
        return None
    return Served({"d": columns}, {"T": tokens}, {})


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
