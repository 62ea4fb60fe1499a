"""fmha with one query: heads that share a key head go to the kernel as queries of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv4.runtime.ops.fmha import heads_as_queries
from dsv4.runtime.reference.fmha import fmha as reference

BATCH, KEYS, HEADS, KV_HEADS, WIDTH = 3, 7, 6, 2, 16


def kernel(q: Any, k: Any, v: Any, sink: Any, out: Any, lse: Any, softmax_scale: float) -> None:
    """Any dense attention that is not causal, in place of a compiled kernel; it asks for lse as kernels do."""
    assert sink is None and lse.stride(2) == 1
    kernel.queries = q.shape[1]  # type: ignore[attr-defined]
    values = reference(q, k, v, softmax_scale=softmax_scale)
    out.copy_(values[0])
    lse.copy_(values[1])


def inputs(**strange: bool) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(4)
    q = torch.randn(BATCH, 1, HEADS, WIDTH).bfloat16()
    k, v = torch.randn(2, BATCH, KEYS, KV_HEADS, WIDTH).bfloat16()
    out = torch.full_like(q, torch.nan)
    if strange.get("strided"):  # between other tensors' columns, and from an offset on
        wide = torch.randn(BATCH, 2, HEADS, 3 * WIDTH).bfloat16()
        wide[:, 1:, :, WIDTH : 2 * WIDTH] = q
        q = wide[:, 1:, :, WIDTH : 2 * WIDTH]
        out = torch.full((BATCH, 1, 2 * HEADS, WIDTH), torch.nan).bfloat16()[:, :, ::2]
    return q, k, v, out


@pytest.mark.parametrize("strided", [False, True])
def test_the_result_is_that_of_the_heads_one_by_one(strided: bool) -> None:
    q, k, v, out = inputs(strided=strided)
    lse = torch.full((BATCH, HEADS, 1), torch.nan)
    heads_as_queries(kernel)(q, k, v, None, out, lse, 0.25)
    expected = reference(q, k, v, softmax_scale=0.25)
    assert kernel.queries == HEADS // KV_HEADS  # type: ignore[attr-defined]
    torch.testing.assert_close((out, lse), expected)


def test_where_the_heads_of_lse_are_apart_nothing_is_folded() -> None:
    q, k, v, out = inputs()
    lse = torch.full((BATCH, HEADS, 4), torch.nan)[:, :, :1]
    heads_as_queries(kernel)(q, k, v, None, out, lse, 0.25)
    assert kernel.queries == 1  # type: ignore[attr-defined]
    torch.testing.assert_close((out, lse), reference(q, k, v, softmax_scale=0.25))


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_on_a_gpu(causal: bool) -> None:
    import dsv4

    torch.manual_seed(5)
    q = torch.randn(2, 1, 8, 128, device="cuda").bfloat16()
    k, v = torch.randn(2, 2, 333, 2, 128, device="cuda").bfloat16()
    out, lse = dsv4.fmha(q, k, v, causal=causal)
    expected = reference(q, k, v, causal=causal, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected[0].double(), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(lse.double(), expected[1].double(), rtol=1e-5, atol=1e-5)
