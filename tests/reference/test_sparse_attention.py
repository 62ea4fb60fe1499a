"""Attention over rows of pools against dsv4-reference §7 written out query by query in float64."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import sparse_attention as module
from dsv4.runtime.reference.attention_combine import attention_combine
from dsv4.runtime.reference.pages import read_rows, write_rows
from dsv4.runtime.reference.sparse_attention import sparse_attention

F64, INF = torch.float64, math.inf


def by_hand(
    q: torch.Tensor, keys: list[torch.Tensor], sink: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query [H, D] and its keys."""
    out, lse = torch.zeros_like(q), torch.full((q.shape[0],), -INF, dtype=F64)
    for head in range(q.shape[0]):
        scores = [scale * float(q[head] @ key) for key in keys]
        if not scores:
            continue
        peak = max(scores)
        total = sum(math.exp(score - peak) for score in scores)
        lse[head] = peak + math.log(total)
        denominator = total + (math.exp(float(sink[head]) - peak) if sink is not None else 0.0)
        for score, key in zip(scores, keys, strict=True):
            out[head] += math.exp(score - peak) / denominator * key
    return out, lse


def problem(tokens: int = 5, k0: int = 6, k1: int = 9):  # type: ignore[no-untyped-def]
    torch.manual_seed(tokens * k1)
    pools = [Pool.allocate(30, page=page, width=32, dtype=F64) for page in (8, 5)]
    for pool in pools:
        write_rows(pool, torch.arange(30), torch.randn(30, 32, dtype=F64))
    rows = []
    for columns in (k0, k1):
        chosen = torch.stack([torch.randperm(30)[:columns] for _ in range(tokens)])
        rows.append(chosen.masked_fill(torch.rand(tokens, columns) < 0.3, -1).to(torch.int32))
    rows[0][0] = -1
    rows[1][0] = -1  # query 0 has no key
    rows[0][1, 1:] = -1
    rows[1][1] = -1  # query 1 has at most one
    return torch.randn(tokens, 3, 32, dtype=F64) * 2, pools, rows, torch.randn(3, dtype=F64)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("with_sink", [True, False])
@pytest.mark.parametrize("limit", [128 << 20, 9000])
def test_values(compressed: bool, with_sink: bool, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_BYTES_MAX", limit)
    q, pools, rows, sink = problem()
    given = sink if with_sink else None
    more = (pools[1], rows[1]) if compressed else (None, None)
    out, lse = sparse_attention(q, pools[0], rows[0], *more, given, dtype=F64)
    for t in range(q.shape[0]):
        keys = [read_rows(pools[0], row[None], dtype=F64)[0] for row in rows[0][t] if row >= 0]
        if compressed:
            keys += [read_rows(pools[1], row[None], dtype=F64)[0] for row in rows[1][t] if row >= 0]
        expected, expected_lse = by_hand(q[t], keys, given, 32**-0.5)
        torch.testing.assert_close(out[t], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(lse[t], expected_lse, rtol=0, atol=1e-12)
    assert not out[0].any() and (lse[0] == -INF).all()


def test_sink_is_a_column_without_a_value() -> None:
    """One key with score 0 and sink 1: the key has weight 1 / (1 + e) = 0.26894 (dsv4-reference §7.2)."""
    pool = Pool.allocate(2, page=2, width=8, dtype=F64)
    pool.data[:] = 1.0
    out, lse = sparse_attention(
        torch.zeros(1, 1, 8, dtype=F64), pool, torch.tensor([[0]]), sink=torch.tensor([1.0]), dtype=F64
    )
    assert out.unique().tolist() == pytest.approx([0.26894142], abs=1e-8) and lse.item() == 0.0


def test_sink_at_its_limits() -> None:
    q, pools, rows, _ = problem()
    bare, bare_lse = sparse_attention(q, pools[0], rows[0], dtype=F64)
    for value, factor in ((-INF, 1.0), (INF, 0.0)):
        out, lse = sparse_attention(q, pools[0], rows[0], sink=torch.full((3,), value), dtype=F64)
        torch.testing.assert_close(out, bare * factor, rtol=0, atol=0)
        assert torch.equal(lse, bare_lse)


def test_order_of_rows_and_places_of_none_do_not_matter() -> None:
    q, pools, rows, sink = problem()
    expected = sparse_attention(q, pools[0], rows[0], pools[1], rows[1], sink, dtype=F64)
    mixed = [each[:, torch.randperm(each.shape[1])] for each in rows]
    got = sparse_attention(q, pools[0], mixed[0], pools[1], mixed[1], sink, dtype=F64)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_probabilities_rounded_before_the_values() -> None:
    q, pools, rows, sink = problem()
    bf16 = torch.bfloat16
    out, lse = sparse_attention(q, pools[0], rows[0], sink=sink, probability_dtype=bf16, dtype=F64)
    t = 2
    keys = torch.stack([read_rows(pools[0], row[None], dtype=F64)[0] for row in rows[0][t] if row >= 0])
    for head in range(3):
        scores = keys @ q[t, head] * 32**-0.5
        weights = (scores - scores.max()).exp()
        expected = weights.to(bf16).double() @ keys / weights.sum()
        kept = 1 / (1 + math.exp(sink[head] - lse[t, head]))
        torch.testing.assert_close(out[t, head], expected * kept, rtol=0, atol=1e-12)


def test_packed_pages_and_bf16() -> None:
    torch.manual_seed(9)
    pool = Pool.allocate(20, format=PoolFormat.KV_FP8, page=4)
    write_rows(pool, torch.arange(20), torch.randn(20, 512).bfloat16())
    q = torch.randn(2, 4, 512).bfloat16()
    rows = torch.stack([torch.randperm(20)[:7] for _ in range(2)])
    out, lse = sparse_attention(q, pool, rows)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    for t in range(2):
        expected, expected_lse = by_hand(q[t].double(), list(read_rows(pool, rows[t], dtype=F64)), None, 512**-0.5)
        torch.testing.assert_close(out[t].double(), expected, rtol=2**-8, atol=1e-5)
        torch.testing.assert_close(lse[t].double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_sink", [True, False])
def test_combined_parts_equal_the_whole(with_sink: bool) -> None:
    q, pools, rows, sink = problem()
    given = sink if with_sink else None
    whole = sparse_attention(q, pools[0], rows[0], pools[1], rows[1], given, dtype=F64)
    pieces = [sparse_attention(q, pools[0], rows[0], dtype=F64)]
    for first in (0, 4):
        pieces.append(sparse_attention(q, pools[1], rows[1][:, first : first + 4 + first], dtype=F64))
    empty = torch.full_like(rows[0], -1)
    pieces.append(sparse_attention(q, pools[0], empty, dtype=F64))
    parts, lses = (torch.stack(each) for each in zip(*pieces, strict=True))
    parts[-1] = math.nan  # a part without keys counts nothing, whatever it holds
    out, lse = attention_combine(parts, lses, given, dtype=F64)
    torch.testing.assert_close(out, whole[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, whole[1], rtol=0, atol=1e-12)


def test_no_queries_and_no_columns() -> None:
    pool = Pool.allocate(2, page=2, width=8, dtype=F64)
    out, lse = sparse_attention(torch.zeros(0, 3, 8, dtype=F64), pool, torch.zeros(0, 4).int(), dtype=F64)
    assert out.shape == (0, 3, 8) and lse.shape == (0, 3)
    out, lse = sparse_attention(torch.zeros(2, 3, 8, dtype=F64), pool, torch.zeros(2, 0).int(), dtype=F64)
    assert not out.any() and (lse == -INF).all()
    parts, lses = torch.zeros(2, 0, 3, 8), torch.zeros(2, 0, 3)
    assert attention_combine(parts, lses)[0].shape == (0, 3, 8)
