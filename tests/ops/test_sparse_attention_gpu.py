"""Attention over gathered rows on a GPU: pools of more than 2³² bytes, and queries without a single key.

Needs a cache with the default kernels of the GPU's arch (``dsv4-gen build``, here or on another machine).
"""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.ops.sparse_attention_decode import sparse_attention_decode
from dsv4.runtime.ops.sparse_attention_prefill import sparse_attention_prefill
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import pages

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels_only")]
HEADS, PAGE, NEAR_PAGES = 64, 64, 3
BEYOND = 1 << 32
"""Bytes; a row number itself fits 32 bits."""


def near_pool() -> Pool:
    made = Pool.allocate(NEAR_PAGES * PAGE, format=PoolFormat.KV_FP8, page=PAGE, device="cuda")
    pages.write_rows(made, torch.arange(NEAR_PAGES * PAGE, device="cuda"), torch.randn(NEAR_PAGES * PAGE, 512).cuda())
    return made


def far_pool(near: Pool) -> tuple[Pool, int]:
    """The same rows at the end of a pool of more than 2³² bytes, the rest of which is NaN; how far they have moved."""
    own_pages, page_bytes = near.data.shape[0], near.data.stride(0)
    more = BEYOND // page_bytes + 1
    data = torch.full((more + own_pages, page_bytes), 0xFF, dtype=torch.uint8, device="cuda")
    data[more:, : near.data.shape[1]] = near.data
    return Pool(data[:, : near.data.shape[1]], PoolFormat.KV_FP8, PAGE), more * PAGE


@pytest.mark.parametrize("requests", [1, 80])
def test_decoding_from_far_rows_gives_the_bits_of_near_ones(requests: int) -> None:
    torch.manual_seed(5)
    near, extra = near_pool(), near_pool()
    q = torch.randn(requests, 1, HEADS, 512, device="cuda", dtype=torch.bfloat16)
    rows, more_rows = (torch.randint(-1, NEAR_PAGES * PAGE, (requests, 1, n), device="cuda") for n in (128, 512))
    rows[..., -1] = more_rows[..., -1] = NEAR_PAGES * PAGE - 1
    sink = torch.randn(HEADS, device="cuda")
    expected = sparse_attention_decode(q, near, rows, None, extra, more_rows, sink=sink)
    far, moved = far_pool(extra)
    found = sparse_attention_decode(
        q, near, rows, None, far, torch.where(more_rows < 0, -1, more_rows + moved), sink=sink
    )
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted) and bool(got.isfinite().all())


def test_prefilling_from_far_rows_gives_the_bits_of_near_ones() -> None:
    torch.manual_seed(6)
    q = torch.randn(300, HEADS, 512, device="cuda", dtype=torch.bfloat16)
    near = torch.randn(256, 512, device="cuda", dtype=torch.bfloat16)
    rows, sink = torch.randint(-1, 256, (300, 640), device="cuda"), torch.randn(HEADS, device="cuda")
    rows[:, -1] = 255
    expected = sparse_attention_prefill(q, near, rows, None, sink)
    moved = BEYOND // 1024 + 1
    far = torch.full((moved + 256, 512), torch.nan, device="cuda", dtype=torch.bfloat16)
    far[moved:] = near
    found = sparse_attention_prefill(q, far, torch.where(rows < 0, -1, rows + moved), None, sink)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted) and bool(got.isfinite().all())


@pytest.mark.parametrize("requests", [1, 80])
def test_queries_without_a_key_end(requests: int) -> None:
    near = near_pool()
    q = torch.randn(requests, 1, HEADS, 512, device="cuda", dtype=torch.bfloat16)
    nothing = torch.full((requests, 1, 128), -1, device="cuda")
    out, lse = sparse_attention_decode(q, near, nothing, None, near, nothing, sink=torch.zeros(HEADS, device="cuda"))
    assert bool((out == 0).all()) and bool(lse.isneginf().all())
