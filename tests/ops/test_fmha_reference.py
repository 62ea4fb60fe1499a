"""The PyTorch reference of fmha against the formula written out row by row with numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dsv4.runtime.reference import fmha as module
from dsv4.runtime.reference.fmha import fmha

INF = math.inf


def formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float, sink: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    qn, kn, vn = (t.double().numpy() for t in (q, k, v))
    batch, queries, heads, _ = qn.shape
    keys, group = kn.shape[1], heads // kn.shape[2]
    out, lse = np.zeros(qn.shape), np.full((batch, heads, queries), -INF)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                seen = [j for j in range(keys) if not causal or j <= i + keys - queries]
                if not seen:
                    continue
                scores = np.array([scale * float(qn[b, i, h] @ kn[b, j, h // group]) for j in seen])
                peak = scores.max()
                weights = np.exp(scores - peak)
                total = weights.sum()
                lse[b, h, i] = math.log(total) + peak
                if sink is not None:
                    total += np.exp(np.float64(sink[h]) - peak)
                out[b, i, h] = (weights[:, None] * vn[b, seen, h // group]).sum(axis=0) / total
    return torch.from_numpy(out), torch.from_numpy(lse)


def tensors(batch: int, queries: int, keys: int, heads: int, kv_heads: int, width: int) -> list[torch.Tensor]:
    torch.manual_seed(queries * 100 + keys)
    shapes = [(batch, queries, heads, width), (batch, keys, kv_heads, width), (batch, keys, kv_heads, width)]
    return [torch.randn(shape).bfloat16() for shape in shapes]


SIZES = [
    (2, 5, 7, 4, 4, 16),
    (1, 9, 4, 6, 2, 8),  # causal: the first rows have no key
    (3, 1, 13, 8, 1, 24),
    (1, 11, 11, 3, 1, 40),
    (2, 6, 0, 2, 1, 16),
    (1, 0, 5, 2, 2, 16),
    (0, 3, 5, 2, 2, 16),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values(size: tuple[int, ...], causal: bool, with_sink: bool, scale: float | None) -> None:
    q, k, v = tensors(*size)
    sink = torch.linspace(-2, 3, size[3]) if with_sink else None
    expected, expected_lse = formula(q, k, v, causal, size[5] ** -0.5 if scale is None else scale, sink)
    options = {"causal": causal, "softmax_scale": scale, "sink": sink}
    out, lse = fmha(q, k, v, **options, dtype=torch.float64, out_dtype=torch.float64)  # type: ignore[arg-type]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-14)
    out, lse = fmha(q, k, v, **options)  # type: ignore[arg-type]
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    q, k, v = tensors(2, 23, 17, 4, 2, 16)
    whole = fmha(q, k, v, causal=causal, sink=torch.ones(4), dtype=torch.float64)
    monkeypatch.setattr(module, "SCORE_BYTES_MAX", 3 * 4 * 17 * 8)  # three queries at a time
    parts = fmha(q, k, v, causal=causal, sink=torch.ones(4), dtype=torch.float64)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_rows_without_keys() -> None:
    q, k, v = tensors(1, 9, 4, 2, 1, 16)
    v[:] = math.nan
    out, lse = fmha(q, k, v, causal=True, sink=torch.tensor([1.0, -INF]))
    assert (out[:, :5] == 0).all() and (lse[:, :, :5] == -INF).all()
    assert out[:, 5:].isnan().all() and lse[:, :, 5:].isfinite().all()


@pytest.mark.parametrize("keys", [0, 7])
def test_infinite_sinks(keys: int) -> None:
    q, k, v = tensors(1, 5, keys, 3, 1, 16)
    plain, lse = fmha(q, k, v)
    out, lse_beside = fmha(q, k, v, sink=torch.tensor([-INF, INF, 0.0]))
    assert torch.equal(lse, lse_beside)  # never including the sink
    assert torch.equal(out[:, :, 0], plain[:, :, 0])
    assert (out[:, :, 1] == 0).all()
    assert not out.isnan().any()


def test_check_value_of_the_sink() -> None:
    """dsv4-reference §7.2: one key with score 0 and a sink of 1 leaves 1 / (1 + e) of the value."""
    q, k, v = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8), torch.ones(1, 1, 1, 8)
    out, lse = fmha(q, k, v, sink=torch.ones(1), dtype=torch.float64, out_dtype=torch.float64)
    torch.testing.assert_close(out, torch.full_like(out, 0.2689414213699951))
    assert lse.item() == 0


def test_nan_stays_in_its_row() -> None:
    q, k, v = tensors(2, 6, 9, 4, 2, 16)
    clean, clean_lse = fmha(q, k, v)
    q[1, 3, 2, 5] = math.nan
    out, lse = fmha(q, k, v)
    assert out[1, 3, 2].isnan().all() and lse[1, 2, 3].isnan()
    out[1, 3, 2], lse[1, 2, 3] = clean[1, 3, 2], clean_lse[1, 2, 3]
    assert torch.equal(out, clean) and torch.equal(lse, clean_lse)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = tensors(1, 3, 5, 2, 2, 16)
    out, lse = fmha(q * 100, k * 100, v)
    expected, expected_lse = formula(q * 100, k * 100, v, False, 0.25, None)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-3)


def test_strided_inputs() -> None:
    packed = torch.randn(2, 7, 3, 4, 16).bfloat16()
    q, k, v = packed.unbind(2)
    got = fmha(q, k, v, causal=True)
    assert all(map(torch.equal, got, fmha(q.contiguous(), k.contiguous(), v.contiguous(), causal=True)))
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    assert all(map(torch.equal, got, fmha(q, k, v, causal=True)))
