"""dsv4.flash_mla: FlashMLA's contract against its formulas in float64; decoding by a compiled kernel, emulated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dsv4 import flash_mla
from dsv4.runtime.errors import ContractError
from dsv4.runtime.pool import Pool, PoolFormat, page_bytes
from dsv4.runtime.reference import pages

INVALID = (-(1 << 31), -123456, -1, 1919810, (1 << 31) - 1)


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in a larger tensor, with gaps after every dimension."""
    wide = torch.empty([n + 1 for n in tensor.shape[:-1]] + [tensor.shape[-1] + 128], dtype=tensor.dtype)
    view = wide[tuple(slice(0, n) for n in tensor.shape)]
    view.copy_(tensor)
    return view


def every_other(numbers: torch.Tensor) -> torch.Tensor:
    """The same numbers, two elements apart, with a one between them."""
    return torch.stack((numbers, torch.ones_like(numbers)), -1)[:, 0]


def cache(rows: int, page: int, dtype: torch.dtype) -> tuple[torch.Tensor, Pool]:
    """FlashMLA's envelope [pages, P, 1, 584] over packed pages, and the pool below it; other rows are NaN."""
    data = torch.full((-(-rows // page) + 1, page_bytes(PoolFormat.KV_FP8, page)), 0xFF, dtype=torch.uint8)
    pool = Pool(data, PoolFormat.KV_FP8, page)
    pages.write_rows(pool, torch.arange(rows), torch.randn(rows, 512) / 10)
    shape, strides = (data.shape[0], page, 1, 584), (data.stride(0), 584, 584, 1)
    return data.view(dtype).as_strided(shape, strides), pool


def rows_of(pool: Pool, index: torch.Tensor, length: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    valid = (index >= 0) & (index < pool.rows)
    if length is not None:
        valid &= torch.arange(index.shape[-1]) < length[:, None, None]
    return pages.read_rows(pool, torch.where(valid, index, -1), dtype=torch.float64), valid


def expected_of(
    q: torch.Tensor, scopes: list[tuple[torch.Tensor, torch.Tensor]], scale: float, sink: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, valid = torch.cat([part[0] for part in scopes], -2), torch.cat([part[1] for part in scopes], -1)
    logits = (q.double() @ keys.transpose(-1, -2) * scale).masked_fill(~valid[..., None, :], -math.inf)
    lse = logits.logsumexp(-1)
    out = torch.where(lse.isneginf()[..., None], 0.0, logits - lse[..., None]).exp() @ keys
    if sink is not None:
        out = out / (1 + (sink.double() - lse).exp())[..., None]
    lonely = lse.isneginf()
    return out.masked_fill(lonely[..., None], 0.0), lse.masked_fill(lonely, math.inf).transpose(1, 2)


def indices(requests: int, queries: int, topk: int, rows: int) -> torch.Tensor:
    found = torch.randint(0, rows, (requests, queries, topk), dtype=torch.int32)
    holes = torch.tensor(INVALID)[torch.randint(0, len(INVALID), found.shape)].to(torch.int32)
    return torch.where(torch.rand(found.shape) < 0.2, holes, found)


def decode_arguments(dtype: torch.dtype, heads: int = 64) -> tuple[dict[str, Any], Pool, Pool]:
    torch.manual_seed(5)
    k_cache, pool = cache(150, 53, dtype)
    extra_cache, extra = cache(90, 2, dtype)
    index, extra_index = indices(3, 2, 128, 150), indices(3, 2, 64, 90)
    index[1], extra_index[1] = -1, (1 << 31) - 1
    given = {
        "q": apart(torch.randn(3, 2, heads, 512).clamp(-1, 1).bfloat16()),
        "k_cache": k_cache,
        "block_table": None,
        "cache_seqlens": None,
        "head_dim_v": 512,
        "tile_scheduler_metadata": flash_mla.get_mla_metadata()[0],
        "is_fp8_kvcache": True,
        "indices": apart(index),
        "attn_sink": every_other(torch.tensor([math.inf, -math.inf, 0.5, 2.0]).repeat(heads // 4)),
        "extra_k_cache": extra_cache,
        "extra_indices_in_kvcache": apart(extra_index),
        "topk_length": every_other(torch.tensor([100, 128, 0], dtype=torch.int32)),
        "extra_topk_length": every_other(torch.tensor([64, 0, 17], dtype=torch.int32)),
    }
    return given, pool, extra


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_decoding(served: list[str], dtype: torch.dtype) -> None:
    given, pool, extra = decode_arguments(dtype)
    out, lse = flash_mla.flash_mla_with_kvcache(**given)
    assert served == ["sparse_attention_decode"]
    assert out.shape == (3, 2, 64, 512) and out.dtype == torch.bfloat16
    assert lse.shape == (3, 64, 2) and lse.dtype == torch.float32
    scopes = [
        rows_of(pool, given["indices"], given["topk_length"]),
        rows_of(extra, given["extra_indices_in_kvcache"], given["extra_topk_length"]),
    ]
    expected, expected_lse = expected_of(given["q"], scopes, 512**-0.5, given["attn_sink"])
    torch.testing.assert_close(out.double(), expected, rtol=2.01 / 128, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=8.01 / 65536, atol=1e-6)
    assert (out[1] == 0).all() and lse[1].isposinf().all() and (out[:, :, 0] == 0).all()


def test_decoding_over_one_cache(served: list[str]) -> None:
    given, pool, _ = decode_arguments(torch.float8_e4m3fn, heads=8)
    for name in [name for name in given if "extra" in name] + ["attn_sink", "topk_length"]:
        del given[name]
    out, lse = flash_mla.flash_mla_with_kvcache(**given, softmax_scale=0.1)
    assert served == ["sparse_attention_decode"]
    expected, expected_lse = expected_of(given["q"], [rows_of(pool, given["indices"], None)], 0.1, None)
    torch.testing.assert_close(out.double(), expected, rtol=2.01 / 128, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=8.01 / 65536, atol=1e-6)


@pytest.mark.parametrize("with_length", [False, True])
def test_prefill(served: list[str], with_length: bool) -> None:
    torch.manual_seed(2)
    q, kv = apart(torch.randn(5, 64, 512).bfloat16() / 10), apart(torch.randn(70, 1, 512).bfloat16() / 10)
    index = indices(5, 1, 128, 70)
    index[3] = 70
    length = torch.tensor([128, 0, 3, 128, 77], dtype=torch.int32) if with_length else None
    sink = every_other(torch.tensor([math.inf, -math.inf, 0.5, 2.0]).repeat(16))
    length = None if length is None else every_other(length)
    out, max_logits, lse = flash_mla.flash_mla_sparse_fwd(q, kv, apart(index), 0.5, attn_sink=sink, topk_length=length)
    assert served == ["sparse_attention_prefill"]
    pool = Pool(kv.contiguous(), PoolFormat.PLAIN, 1)
    keys, valid = rows_of(pool, index, length)
    expected, expected_lse = expected_of(q[:, None], [(keys, valid)], 0.5, sink)
    torch.testing.assert_close(out.double(), expected[:, 0], rtol=2.01 / 128, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse[..., 0], rtol=8.01 / 65536, atol=1e-6)
    logits = (q.double()[:, None] @ keys.transpose(-1, -2) * 0.5).masked_fill(~valid[..., None, :], -math.inf)
    torch.testing.assert_close(max_logits.double(), logits[:, 0].amax(-1), rtol=1e-5, atol=1e-5)
    assert max_logits[3].isneginf().all() and lse[3].isposinf().all() and (out[3] == 0).all()


def test_metadata_is_shared_by_equal_shapes_only() -> None:
    given, _, _ = decode_arguments(torch.uint8)
    flash_mla.flash_mla_with_kvcache(**given)
    flash_mla.flash_mla_with_kvcache(**given)
    shorter = {**given, "indices": given["indices"][..., :64]}
    with pytest.raises(ContractError, match="tile_scheduler_metadata: found topk 64; valid: 128"):
        flash_mla.flash_mla_with_kvcache(**shorter)
    with pytest.raises(ContractError, match=r"tile_scheduler_metadata: found None; valid"):
        flash_mla.flash_mla_with_kvcache(**{**given, "tile_scheduler_metadata": None})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"head_dim_v": 576}, "head_dim_v: found 576; valid: 512"),
        ({"causal": True}, "causal: found True; valid: False"),
        ({"is_fp8_kvcache": False}, "is_fp8_kvcache: found False; valid: True"),
        ({"num_splits": 3}, "num_splits: found 3; valid: None"),
        ({"indices": None}, "indices: found None; valid: int32"),
        ({"q": torch.zeros(3, 2, 64, 576, dtype=torch.bfloat16)}, r"q: found torch\.bfloat16 \[3, 2, 64, 576\]"),
        ({"k_cache": torch.zeros(4, 64, 1, 656, dtype=torch.uint8)}, r"k_cache: found torch\.uint8 \[4, 64, 1, 656\]"),
        ({"k_cache": torch.zeros(4, 53, 1, 584, dtype=torch.uint8)}, r"k_cache: found strides \[30952, 584, 584, 1\]"),
        ({"extra_k_cache": None}, "extra_indices_in_kvcache: found Tensor; valid: given together"),
        ({"topk_length": torch.zeros(2, dtype=torch.int32)}, r"length: found shape \[2\]"),
    ],
)
def test_what_is_refused_names_the_argument(changed: dict[str, Any], said: str) -> None:
    given, _, _ = decode_arguments(torch.uint8)
    with pytest.raises(ContractError, match=said):
        flash_mla.flash_mla_with_kvcache(**{**given, **changed})
