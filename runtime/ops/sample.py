"""sample: the next token of each sequence."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import sample as reference

_operator = Operator(
    "sample",
    reference.sample,
    "logits: float [R, V]",
    "temperature: wide [R]",
    "top_k: int [R]",
    "top_p: wide [R]",
    "seed: i64 [R]",
    "position: i64 [R]",
    dynamic=("R",),
)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """i64 [R]: one token for each row of logits [R, V].

    Args:
        temperature: [R], ≥ 0; 0 is greedy, the lowest of equal logits.
        top_k: int [R], only the k largest logits; 0 for all.
        top_p: [R], only the most probable tokens that together reach p; 1 for all.
        seed, position: i64 [R], which alone decide the noise.

    Raises ``ContractError``. dsv4-reference §10.3.
    """
    return _operator(logits, temperature, top_k, top_p, seed, position, dtype=dtype)
