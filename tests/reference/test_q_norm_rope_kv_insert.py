"""Queries and window keys against the formulas of dsv4-reference §3 and §4 written out row by row."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.pages import fake_quantize, read_rows
from dsv4.runtime.reference.q_norm import q_norm
from dsv4.runtime.reference.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.reference.rope import rope_frequencies, rope_table

F64, BF16 = torch.float64, torch.bfloat16


def turned(row: torch.Tensor, position: int) -> torch.Tensor:
    out = row.clone()
    for pair, frequency in enumerate(rope_frequencies(1e4, 64)):
        angle = (torch.tensor(float(position)) * frequency).item()
        even, odd = row[448 + 2 * pair].item(), row[449 + 2 * pair].item()
        out[448 + 2 * pair] = even * math.cos(angle) - odd * math.sin(angle)
        out[449 + 2 * pair] = even * math.sin(angle) + odd * math.cos(angle)
    return out


def normed(row: torch.Tensor) -> torch.Tensor:
    return row / math.sqrt(sum(value * value for value in row.tolist()) / len(row) + 1e-6)


def inputs(tokens: int = 5) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens)
    positions = torch.arange(tokens) * 37
    q, kv = torch.randn(tokens, 3, 512, dtype=F64) * 2, torch.randn(tokens, 512, dtype=F64) * 3
    weight = 1 + 0.3 * torch.randn(512, dtype=F64)
    return q, kv, weight, positions, rope_table(positions, rope_frequencies(1e4, 64), dtype=F64)


def test_values() -> None:
    q, kv, weight, positions, table = inputs()
    pool = Pool.allocate(20, page=8, dtype=F64)
    rows = torch.tensor([3, 19, -1, 0, 7], dtype=torch.int32)
    got = q_norm_rope_kv_insert(q, kv, weight, table, pool, rows, dtype=F64)
    stored = read_rows(pool, rows, dtype=F64)
    for t, position in enumerate(positions.tolist()):
        for head in range(3):
            torch.testing.assert_close(got[t, head], turned(normed(q[t, head]), position), rtol=0, atol=1e-12)
        expected = turned(weight * normed(kv[t]), position) if t != 2 else torch.zeros(512, dtype=F64)
        torch.testing.assert_close(stored[t], expected, rtol=0, atol=1e-12)


def test_each_step_rounded_as_the_official_code_does() -> None:
    q, kv, weight, positions, table = inputs()
    q, kv, weight = q.to(BF16), kv.to(BF16), weight.to(BF16)
    table = table.float()
    pool = Pool.allocate(5, page=8, dtype=BF16)
    got = q_norm_rope_kv_insert(
        q, kv, weight, table, pool, torch.arange(5), stage_dtype=BF16, fake_quantize=True, out_dtype=BF16
    )
    for t, position in enumerate(positions.tolist()):
        head = q[t, 1]
        root = (head.square().mean() + 1e-6).float().rsqrt().to(BF16)
        scaled = head * root  # all in bf16
        expected = turned(scaled.float(), position).to(BF16)
        assert (got[t, 1] == expected).double().mean() > 0.99
        key = (weight.double() * normed(kv[t].double())).to(BF16)
        key = fake_quantize(turned(key.double(), position).to(BF16)[None], "fq64")[0]
        assert (pool.data.view(-1, 512)[t] == key).double().mean() > 0.99


def test_rounded_once_into_packed_pages() -> None:
    q, kv, weight, positions, table = inputs()
    pool = Pool.allocate(5, format=PoolFormat.KV_FP8, page=4)
    got = q_norm_rope_kv_insert(q.to(BF16), kv.to(BF16), weight.to(BF16), table.float(), pool, torch.arange(5))
    assert got.dtype == BF16
    stored = read_rows(pool, torch.arange(5), dtype=F64)
    for t, position in enumerate(positions.tolist()):
        key = turned(weight.to(BF16).double() * normed(kv[t].to(BF16).double()), position)
        quantized = fake_quantize(key, "fq64")[:448]
        assert (stored[t, :448] == quantized).double().mean() > 0.99
        torch.testing.assert_close(stored[t, 448:], key[448:].to(BF16).double(), rtol=2**-7, atol=0)
        exact = turned(normed(q[t, 0].to(BF16).double()), position)
        torch.testing.assert_close(got[t, 0].double(), exact, rtol=2**-8, atol=1e-5)


def test_q_norm_in_bf16_differs_from_float32() -> None:
    q = torch.randn(64, 512).to(BF16)
    wide, narrow = q_norm(q), q_norm(q, stage_dtype=BF16)
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(wide, narrow, rtol=2e-2, atol=0)
    assert not q_norm(torch.zeros(2, 512)).any()


@pytest.mark.parametrize("tokens", [0])
def test_no_tokens(tokens: int) -> None:
    q, kv, weight, _, table = inputs(tokens)
    pool = Pool.allocate(4, page=2, dtype=F64)
    rows = torch.zeros(0, dtype=torch.int64)
    assert q_norm_rope_kv_insert(q, kv, weight, table, pool, rows, dtype=F64).shape == (0, 3, 512)
    assert not pool.data.any()
