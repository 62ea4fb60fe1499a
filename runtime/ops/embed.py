"""embed: the embedding of each token, repeated over the residual streams."""

from __future__ import annotations

from typing import Any

import torch

from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import embed as reference


def _check_values(op: str, values: dict[str, Any]) -> None:
    in_range(op, "tokens", values["tokens"], 0, values["table"].shape[0])


_operator = Operator("embed", reference.embed, "tokens: int [T]", "table: float [V, d]", check_values=_check_values)


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
