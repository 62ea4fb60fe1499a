"""embed: the embedding of each token, repeated over the residual streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import embed as reference


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "tokens", values["tokens"], 0, values["table"].shape[0])


COLUMNS_MULTIPLE = 256


def _serves(tokens: torch.Tensor, table: torch.Tensor, *, streams: int, out_dtype: torch.dtype | None) -> Served | None:
    vocabulary, columns = table.shape
    if not are(torch.bfloat16, table) or out_dtype not in (None, torch.bfloat16) or columns % COLUMNS_MULTIPLE:
        return None
    if streams not in (0, 1, 4):
        return None
    sizes = {"T": tokens.shape[0], "V": vocabulary}
    return Served({"d": columns}, sizes, {"long_tokens": tokens.dtype == torch.int64, "copies": max(1, streams)})


def _call(kernel: Callable[..., None], tokens: torch.Tensor, table: torch.Tensor, *, streams: int, **_: object) -> Any:
    copies = table.new_empty((tokens.shape[0], max(1, streams), table.shape[1]))
    kernel(tokens, table, copies)
    return copies if streams else copies.view(tokens.shape[0], table.shape[1])


_operator = Operator(
    "embed",
    reference.embed,
    "tokens: int [T]",
    "table: float [V, d]",
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
)


def embed(
    tokens: torch.Tensor, table: torch.Tensor, *, streams: int = 4, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The initial streams [T, streams, d], each the embedding of tokens[t]; with ``streams=0`` the embedding [T, d].

    Args:
        tokens: i64 or i32 [T], each from 0 to V − 1 (checked in debug mode).
        table: float [V, d].
        out_dtype: dtype of the result, by default that of ``table``.

    Raises ``ContractError``. dsv4-reference §2.1.
    """
    return _operator(tokens, table, streams=streams, out_dtype=out_dtype)
