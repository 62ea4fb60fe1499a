"""The indexer's queries, scores and selection against dsv4-reference §6 written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import indexer_scores as module
from dsv4.runtime.reference.hadamard import hadamard
from dsv4.runtime.reference.indexer_q import indexer_q
from dsv4.runtime.reference.indexer_scores import indexer_scores
from dsv4.runtime.reference.pages import read_rows, write_rows
from dsv4.runtime.reference.quantize import fake_quantize_fp8, fake_quantize_mxfp4
from dsv4.runtime.reference.rope import rope_frequencies, rope_table, rotate
from dsv4.runtime.reference.topk import topk
from dsv4.runtime.weight import Quantized

F64 = torch.float64


def test_queries() -> None:
    q = torch.randn(4, 3, 128, dtype=F64)
    table = rope_table(torch.arange(4) * 50, rope_frequencies(1e4, 64), dtype=F64)
    turned = rotate(q, table, dtype=F64)
    plain = indexer_q(q, table, dtype=F64)
    assert isinstance(plain, torch.Tensor) and torch.equal(plain, turned)
    assert torch.equal(turned[..., :64], q[..., :64])  # the last 64 of 128 rotate
    for code, round_trip in (("fp4", fake_quantize_mxfp4), ("fp8", lambda x: fake_quantize_fp8(x, 128))):
        got = indexer_q(q, table, code=code, rotate_hadamard=True, dtype=F64)  # type: ignore[arg-type]
        assert isinstance(got, Quantized)
        assert torch.equal(got.dequantize(F64), round_trip(hadamard(turned)))
    staged = indexer_q(q, table, code="fp4", rotate_hadamard=True, stage_dtype=torch.bfloat16, dtype=F64)
    assert isinstance(staged, Quantized)
    stages = hadamard(turned.bfloat16().double()).bfloat16()
    assert torch.equal(staged.dequantize(F64), fake_quantize_mxfp4(stages.double()))


@pytest.mark.parametrize("lengths", [(1, 1, 1), (4, 4), (3, 1, 5), (7,)])
@pytest.mark.parametrize("limit", [64 << 20, 3000])
def test_scores(lengths: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORE_BYTES_MAX", limit)
    torch.manual_seed(len(lengths))
    tokens, heads, entries = sum(lengths), 5, 11
    pool = Pool.allocate(40, page=8, width=128, dtype=F64)
    write_rows(pool, torch.arange(40), torch.randn(40, 128, dtype=F64))
    rows = torch.stack([torch.randperm(40)[:entries] for _ in lengths])
    q, weights = torch.randn(tokens, heads, 128, dtype=F64), torch.randn(tokens, heads, dtype=F64)
    visible = torch.randint(0, entries + 1, (tokens,))
    got = indexer_scores(q, weights, pool, rows, visible, lengths, scale=0.25, dtype=F64)
    owner = [s for s, length in enumerate(lengths) for _ in range(length)]
    for t in range(tokens):
        for e in range(entries):
            if e >= visible[t]:
                assert got[t, e] == -math.inf
                continue
            key = read_rows(pool, rows[owner[t], e][None], dtype=F64)[0]
            score = sum(weights[t, h] * 0.25 * max(0.0, float(q[t, h] @ key)) for h in range(heads))
            assert got[t, e].item() == pytest.approx(float(score), rel=1e-12, abs=1e-12)
    assert (got[got > -math.inf] < 0).any()  # the weights may be negative, so scores are not ≥ 0


def test_scores_rounded_at_each_step() -> None:
    torch.manual_seed(1)
    bf16 = torch.bfloat16
    pool = Pool.allocate(6, page=8, width=128, dtype=bf16)
    write_rows(pool, torch.arange(6), torch.randn(6, 128).to(bf16))
    q, weights = torch.randn(2, 4, 128).to(bf16), torch.randn(2, 4).to(bf16)
    rows, visible = torch.arange(6)[None], torch.tensor([6, 6])
    got = indexer_scores(q, weights, pool, rows, visible, (2,), scale=0.011048543, stage_dtype=bf16)
    keys = read_rows(pool, rows[0])
    for t in range(2):
        for e in range(6):
            products = torch.stack([(q[t, h].float() @ keys[e]).to(bf16).relu() for h in range(4)])
            score = (products * (weights[t] * 0.011048543)).float().sum().to(bf16)
            torch.testing.assert_close(got[t, e], score.float(), rtol=2**-7, atol=0)
    assert torch.equal(got, got.to(bf16).float())


@pytest.mark.parametrize("format", [PoolFormat.INDEX_FP4, PoolFormat.INDEX_FP8])
def test_scores_from_packed_keys(format: PoolFormat) -> None:
    torch.manual_seed(2)
    pool = Pool.allocate(6, format=format, page=4)
    write_rows(pool, torch.arange(6), torch.randn(6, 128))
    table = rope_table(torch.arange(3), rope_frequencies(1e4, 64))
    q = indexer_q(torch.randn(3, 4, 128), table, code="fp4" if format is PoolFormat.INDEX_FP4 else "fp8")
    assert isinstance(q, Quantized)
    weights, visible = torch.randn(3, 4), torch.tensor([6, 2, 0])
    got = indexer_scores(q, weights, pool, torch.arange(6)[None], visible, (3,), scale=1.0)
    products = torch.einsum("thd,ed->the", q.dequantize(F64), read_rows(pool, torch.arange(6), dtype=F64))
    expected = torch.einsum("the,th->te", products.relu(), weights.double())
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    assert got[2].isneginf().all() and got[1, 2:].isneginf().all()


def test_no_tokens_or_no_entries() -> None:
    pool = Pool.allocate(4, page=4, width=128, dtype=F64)
    none = torch.zeros(0, dtype=torch.int64)
    q, weights = torch.randn(0, 4, 128), torch.randn(0, 4)
    assert indexer_scores(q, weights, pool, torch.zeros(0, 3).long(), none, (), scale=1.0).shape == (0, 3)
    q, weights = torch.randn(2, 4, 128), torch.randn(2, 4)
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    assert indexer_scores(q, weights, pool, nothing, torch.zeros(2).long(), (2,), scale=1.0).shape == (2, 0)


def test_topk_orders_by_score_then_by_index() -> None:
    scores = torch.tensor([[0.0, 3.0, 0.0, 3.0, -1.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0, 9.0]])
    got = topk(scores, torch.tensor([6, 5]), k=4)
    assert got.dtype == torch.int32
    assert got.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def test_topk_against_sorting() -> None:
    torch.manual_seed(3)
    scores = torch.randint(-3, 4, (50, 37)).to(F64)  # many ties
    visible = torch.randint(0, 38, (50,))
    for k in (1, 8, 37, 64):
        got = topk(scores, visible, k=k)
        assert got.shape == (50, k)
        for row, values, count in zip(got.tolist(), scores.tolist(), visible.tolist(), strict=True):
            expected = sorted(range(count), key=lambda e: (-values[e], e))[:k]
            assert row == expected + [-1] * (k - len(expected))


def test_topk_of_nothing() -> None:
    assert topk(torch.zeros(0, 5), torch.zeros(0).long(), k=3).shape == (0, 3)
    assert topk(torch.zeros(2, 0), torch.zeros(2).long(), k=3).tolist() == [[-1] * 3] * 2


def test_visible_entries_without_a_finite_score_are_chosen_still() -> None:
    scores = torch.tensor([[-math.inf, 1.0, -math.inf, 2.0]])
    assert topk(scores, torch.tensor([3]), k=4).tolist() == [[1, 0, 2, -1]]
