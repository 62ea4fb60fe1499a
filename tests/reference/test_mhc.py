"""The mHC operators against their formulas written out token by token, and the check values of dsv4-reference §2.6."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.runtime.reference.embed import embed
from dsv4.runtime.reference.mhc_head import mhc_head
from dsv4.runtime.reference.mhc_post import mhc_post
from dsv4.runtime.reference.mhc_pre import mhc_pre, sinkhorn

F64 = torch.float64
MU = [0.3, -1.2, 0.7, 2.0, -0.5, 0.1, 1.5, -2.0]
MU += [1.0, -0.5, 0.2, 0.9, -1.3, 0.4, 2.2, 0.0, 0.6, 0.6, -0.8, 1.1, -2.0, 1.7, 0.3, -0.4]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def sinkhorn_by_hand(logits: list[list[float]], eps: float, columns: int) -> list[list[float]]:
    matrix = []
    for row in logits:
        weights = [math.exp(value - max(row)) for value in row]
        matrix.append([weight / sum(weights) + eps for weight in weights])
    for step in range(2 * columns - 1):
        if step % 2 == 0:
            sums = [sum(row[k] for row in matrix) + eps for k in range(4)]
            matrix = [[row[k] / sums[k] for k in range(4)] for row in matrix]
        else:
            matrix = [[value / (sum(row) + eps) for value in row] for row in matrix]
    return matrix


def pre_by_hand(x: list[list[float]], fn: list[list[float]], base: list[float], scale: list[float]):  # type: ignore[no-untyped-def]
    flat = [value for stream in x for value in stream]
    rho = 1 / math.sqrt(sum(value * value for value in flat) / len(flat) + 1e-6)
    mu = [rho * sum(a * b for a, b in zip(row, flat, strict=True)) for row in fn]
    pre = [sigmoid(mu[j] * scale[0] + base[j]) + 1e-6 for j in range(4)]
    post = [2 * sigmoid(mu[4 + j] * scale[1] + base[4 + j]) for j in range(4)]
    logits = [[mu[8 + 4 * j + k] * scale[2] + base[8 + 4 * j + k] for k in range(4)] for j in range(4)]
    u = [sum(pre[j] * x[j][i] for j in range(4)) for i in range(len(x[0]))]
    return u, post, sinkhorn_by_hand(logits, 1e-6, 20)


def test_check_values() -> None:
    """fn picks μ out of a stream whose mean square is 1 − 1e-6, so that ρ = 1."""
    width = 24
    streams = torch.zeros(1, 4, width, dtype=F64)
    streams[0, 0, :] = torch.tensor(MU, dtype=F64)
    fn = torch.zeros(24, 4 * width, dtype=F64)
    fn[torch.arange(24), torch.arange(24)] = 1
    missing = 4 * width * (1 - 1e-6) - streams.square().sum()
    streams[0, 3, 0] = missing.sqrt()
    base, scale = torch.zeros(24), torch.ones(3)
    u, post, comb = mhc_pre(streams, fn, base, scale, dtype=F64)
    pre = torch.tensor([0.57444352, 0.23147622, 0.66818877, 0.88079808], dtype=F64)
    torch.testing.assert_close(u[0, 1:], pre[0] * streams[0, 0, 1:], rtol=0, atol=2e-8)
    torch.testing.assert_close(u[0, 0], pre[0] * 0.3 + pre[3] * missing.sqrt(), rtol=0, atol=1e-7)
    expected_post = torch.tensor([0.75508134, 1.04995837, 1.63514895, 0.23840584], dtype=F64)
    torch.testing.assert_close(post[0], expected_post, rtol=0, atol=1e-8)
    expected = [
        [0.52968737, 0.05005191, 0.09813259, 0.32212717],
        [0.05144685, 0.11925673, 0.70242361, 0.12687178],
        [0.37975498, 0.16082084, 0.03861217, 0.42081104],
        [0.03910981, 0.66986952, 0.16083064, 0.13018902],
    ]
    torch.testing.assert_close(comb[0], torch.tensor(expected, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(comb[0].sum(0), torch.full((4,), 0.999999, dtype=F64), rtol=0, atol=1e-9)
    rows = comb[0].sum(1)
    assert rows.min() > 0.99999896 and rows.max() < 0.99999904


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_pre_post_and_head(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    tokens, width = 3, 16
    streams = torch.randn(tokens, 4, width, dtype=F64)
    fn, base, scale = torch.randn(24, 4 * width, dtype=F64), torch.randn(24, dtype=F64), torch.rand(3, dtype=F64)
    update = torch.randn(tokens, width, dtype=F64)
    u, post, comb = mhc_pre(streams, fn, base, scale, dtype=dtype, out_dtype=dtype)
    after = mhc_post(update, streams, post, comb, dtype=dtype, out_dtype=dtype)
    head = mhc_head(streams, fn[:4], base[:4], scale[:1], dtype=dtype, out_dtype=dtype)
    assert u.dtype == post.dtype == comb.dtype == after.dtype == head.dtype == dtype
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == F64 else 1e-5}
    for t in range(tokens):
        x = streams[t].tolist()
        expected_u, expected_post, c = pre_by_hand(x, fn.tolist(), base.tolist(), scale.tolist())
        expected_after = [
            [expected_post[k] * update[t, i].item() + sum(c[j][k] * x[j][i] for j in range(4)) for i in range(width)]
            for k in range(4)
        ]  # c[source][destination]
        for got, expected in ((u[t], expected_u), (post[t], expected_post), (comb[t], c), (after[t], expected_after)):
            torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=F64), **tolerance)
        torch.testing.assert_close(head[t].double(), torch.tensor(expected_u, dtype=F64), **tolerance)


def test_the_residual_matrix_is_applied_transposed() -> None:
    streams = torch.randn(1, 4, 8)
    comb = torch.zeros(1, 4, 4)
    comb[0, 1, 3] = 1  # from stream 1 to stream 3
    after = mhc_post(torch.zeros(1, 8), streams, torch.zeros(1, 4), comb)
    assert torch.equal(after[0, 3], streams[0, 1]) and not after[0, :3].any()


def test_sinkhorn_ends_on_columns_and_starts_from_a_softmax() -> None:
    logits = torch.randn(2, 4, 4, dtype=F64) * 3
    for iterations in (1, 2, 20):
        got = sinkhorn(logits, eps=1e-6, iterations=iterations)
        for matrix, expected in zip(got, logits.tolist(), strict=True):
            by_hand = torch.tensor(sinkhorn_by_hand(expected, 1e-6, iterations), dtype=F64)
            torch.testing.assert_close(matrix, by_hand, rtol=1e-12, atol=0)
    one = sinkhorn(logits, eps=1e-6, iterations=1)
    torch.testing.assert_close(one.sum(-2), torch.ones(2, 4, dtype=F64), rtol=1e-5, atol=0)
    assert (one.sum(-1) - 1).abs().max() > 1e-3
    huge = sinkhorn(torch.full((1, 4, 4), 500.0), eps=1e-6, iterations=20)
    torch.testing.assert_close(huge, torch.full((1, 4, 4), 0.25), rtol=1e-5, atol=0)


def test_no_tokens_and_bf16_streams() -> None:
    fn, base, scale = torch.randn(24, 64), torch.randn(24), torch.rand(3)
    u, post, comb = mhc_pre(torch.randn(0, 4, 16).bfloat16(), fn, base, scale)
    assert u.shape == (0, 16) and post.shape == (0, 4) and comb.shape == (0, 4, 4)
    assert mhc_post(u, torch.randn(0, 4, 16).bfloat16(), post, comb).shape == (0, 4, 16)
    streams = torch.randn(2, 4, 16).bfloat16()
    u, post, comb = mhc_pre(streams, fn, base, scale)
    assert u.dtype == torch.bfloat16 and post.dtype == comb.dtype == torch.float32
    exact, _, _ = mhc_pre(streams, fn, base, scale, dtype=F64, out_dtype=F64)
    torch.testing.assert_close(u.double(), exact, rtol=2**-8, atol=1e-6)


def test_embedding() -> None:
    table = torch.randn(10, 6).bfloat16()
    tokens = torch.tensor([3, 0, 9, 3])
    streams = embed(tokens, table)
    assert streams.shape == (4, 4, 6) and streams.is_contiguous() and streams.dtype == torch.bfloat16
    for t, token in enumerate(tokens.tolist()):
        for k in range(4):
            assert torch.equal(streams[t, k], table[token])
    assert torch.equal(embed(tokens, table, streams=0, out_dtype=torch.float32), table[tokens].float())
    assert embed(tokens[:0], table).shape == (0, 4, 6)
