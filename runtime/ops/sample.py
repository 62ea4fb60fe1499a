"""sample: the next token of each sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import sample as reference

VOCABULARY_MULTIPLE = 8


def _serves(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> Served | None:
    rows, vocabulary = logits.shape
    is_bf16 = are(torch.bfloat16, logits)
    if not are(torch.float32, temperature, top_p, *(() if is_bf16 else (logits,))) or dtype != torch.float32:
        return None
    if vocabulary % VOCABULARY_MULTIPLE:
        return None
    return Served({"V": vocabulary}, {"R": rows}, {"bf16_logits": is_bf16})


def _call(
    kernel: Callable[..., None],
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    **_: object,
) -> torch.Tensor:
    token = seed.new_empty(seed.shape)
    wide, narrow = (None, logits) if logits.dtype == torch.bfloat16 else (logits, None)
    kernel(wide, narrow, temperature, top_k, top_p, seed, position, token)
    return token


_operator = Operator(
    "sample",
    reference.sample,
    "logits: float [R, V]",
    "temperature: wide [R]",
    "top_k: i64 [R]",
    "top_p: wide [R]",
    "seed: i64 [R]",
    "position: i64 [R]",
    dynamic=("R",),
    kernel=KernelPath(_serves, _call),
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
        top_k: i64 [R], only the k largest logits; 0 for all.
        top_p: [R], only the most probable tokens that together reach p; 1 for all.
        seed, position: i64 [R], which alone decide the noise.

    Raises ``ContractError``. dsv4-reference §10.3.
    """
    return _operator(logits, temperature, top_k, top_p, seed, position, dtype=dtype)
