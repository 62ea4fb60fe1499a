"""The generator of FlashMLA's cases: its product, its float64 against a formula of one row at a time, the emulator."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.flash_mla_cases import kernels, product
from benchmarks.flash_mla_cases.expected import expected
from benchmarks.flash_mla_cases.inputs import Inputs, Maker
from benchmarks.flash_mla_cases.judged import DECODE_LSE, DECODE_OUT, Judge
from benchmarks.flash_mla_cases.product import Decode, Prefill, Scope
from benchmarks.flash_mla_cases.result import Result
from benchmarks.flash_mla_cases.run import check
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import pages

TWO_POOLS = Decode("decode product", 3, 2, 8, (Scope(20, 64, 69, True), Scope(9, 64, 2)))
NO_ROWS = Decode("decode corners", 4, 3, 8, (Scope(70, 64, 53),), has_zero=True)
ALL_EMPTY = Decode("decode corners", 2, 1, 8, (Scope(20, 64, 61), Scope(20, 64, 61, True)), is_empty=True)
OUTSIDE = Prefill("prefill corners", 40, 30, 64, 8, has_sink=True, has_length=True, is_empty=True)


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker(torch.device("cpu"), bank_rows=4096)


def test_every_case_of_the_product_is_there_once() -> None:
    cases = product.all_cases()
    assert len({case.label for case in cases}) == len(set(cases)) == len(cases) == 4672
    assert Counter(case.group for case in cases) == {
        "decode product": 3552,
        "decode corners": 924,
        "decode production": 26,
        "prefill product": 144,
        "prefill corners": 18,
        "prefill production": 8,
    }
    assert len(dict.fromkeys(kernels.need_of(case) for case in cases)) == 32


def seen(inputs: Inputs, case: Decode | Prefill, query: int) -> torch.Tensor:
    """The keys [n, 512] of one query, from the bytes that the kernel gets."""
    given = inputs.arguments
    if isinstance(case, Prefill):
        index, length, kv = (given[name] for name in ("indices", "topk_length", "kv"))
        assert isinstance(index, torch.Tensor) and isinstance(kv, torch.Tensor)
        count = case.topk if length is None else int(length[query])  # type: ignore[index]
        rows = [row for row in index[query, 0, :count].tolist() if 0 <= row < case.rows]
        return kv[rows, 0].double()
    found, request = [], query // case.queries
    for extra, scope in zip(("", "extra_"), case.scopes, strict=False):
        index = given["extra_indices_in_kvcache" if extra else "indices"]
        length, cache = given[extra + "topk_length"], given[extra + "k_cache"]
        assert isinstance(index, torch.Tensor) and isinstance(cache, torch.Tensor)
        assert not index.is_contiguous() and cache.stride(0) % 576 == 0
        count = scope.topk if length is None else int(length[request])  # type: ignore[index]
        rows = [row for row in index[request, query % case.queries, :count].tolist() if row != -1]
        assert len(set(rows)) == len(rows)
        data = cache.view(torch.uint8).as_strided((cache.shape[0], cache.stride(0)), (cache.stride(0), 1))
        pool = Pool(data, PoolFormat.KV_FP8, scope.page)
        found.append(pages.read_rows(pool, torch.tensor(rows, dtype=torch.int64), dtype=torch.float64))
    return torch.cat(found)


@pytest.mark.parametrize("case", [TWO_POOLS, NO_ROWS, ALL_EMPTY, OUTSIDE], ids=lambda case: case.label)
def test_the_expected_result_is_that_of_the_formula(maker: Maker, case: Decode | Prefill) -> None:
    inputs = maker.make(case)
    blocks = list(expected(inputs, block_bytes=1 << 20))
    out, top, lse = (torch.cat([part[i] for _, part in blocks]) for i in range(3))
    lonely = 0
    for query in range(len(inputs.q)):
        keys = seen(inputs, case, query)
        assert keys.isfinite().all()
        lonely += len(keys) == 0
        for head in range(0, case.heads, 3):
            logits = [float(row @ inputs.q[query, head].double()) * inputs.scale for row in keys]
            total = sum(math.exp(logit) for logit in logits)
            sink = -math.inf if inputs.sink is None else float(inputs.sink[head])
            below = total + (math.inf if sink == math.inf else math.exp(sink))
            value = sum((math.exp(x) / below * row for x, row in zip(logits, keys, strict=True)), torch.zeros(512))
            torch.testing.assert_close(out[query, head], value.double(), rtol=1e-9, atol=1e-12)
            assert float(lse[query, head]) == pytest.approx(math.log(total) if logits else math.inf, rel=1e-9)
            assert float(top[query, head]) == pytest.approx(max(logits, default=-math.inf), rel=1e-9)
    assert (lonely > 0) == (case is not TWO_POOLS)


def test_what_no_query_may_read_is_nan(maker: Maker) -> None:
    inputs = maker.make(TWO_POOLS)
    cache = inputs.arguments["k_cache"]
    assert isinstance(cache, torch.Tensor)
    codes = cache.as_strided((cache.shape[0], 69, 448), (cache.stride(0), 576, 1)).float()
    assert 0.5 < codes.isnan().all(-1).float().mean() < 1 and not (codes.isnan().any(-1) ^ codes.isnan().all(-1)).any()


def test_the_judge_finds_what_is_wrong() -> None:
    right = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).double()
    right[3, 3] = math.inf

    def findings(found: torch.Tensor) -> list[str]:
        judge = Judge("out", (DECODE_OUT,))
        judge.show(found[:40], right[:40])
        judge.show(found[40:], right[40:])
        return judge.verdict().findings

    assert findings(right.clone()) == []
    for place, value in (((3, 3), 1.0), ((5, 1), math.nan), ((50, 2), -math.inf)):
        found = right.clone()
        found[place] = value
        assert findings(found) == ["out: 1 elements are infinite or NaN, or should be"]
    found = right.clone()
    found[60, 0] += 0.05 * abs(float(found[60, 0])) + 0.01
    assert "times what is allowed" in findings(found)[0]
    assert "distance" in findings(torch.where(right.isfinite(), right * 1.01, right))[0]
    judge = Judge("lse", (DECODE_LSE,))
    judge.show(right * (1 + 9 / 65536), right)
    assert "lse: off by 1.1" in judge.verdict().findings[0]


@pytest.mark.parametrize("case", [TWO_POOLS, OUTSIDE], ids=lambda case: case.label)
def test_the_functions_on_a_cpu(maker: Maker, case: Decode | Prefill) -> None:
    verdict = check(case, maker)
    assert verdict.findings == [] and verdict.errors["out_abs"] < 1e-2


@pytest.mark.parametrize(
    "case",
    [replace(TWO_POOLS, heads=64, has_zero=True), replace(OUTSIDE, heads=64, queries=9)],
    ids=["decode", "prefill"],
)
def test_the_kernels_in_the_emulator(served: list[str], maker: Maker, case: Decode | Prefill) -> None:
    verdict = check(case, maker)
    assert verdict.findings == [] and len(set(served)) == 1


def test_a_result_goes_on_where_it_ended() -> None:
    cases: list[product.Case] = [TWO_POOLS, NO_ROWS, OUTSIDE]
    result = Result()
    result.begin(cases)
    result.add(TWO_POOLS, {"out_abs": 0.5}, [])
    result.add(NO_ROWS, {"out_abs": 0.25}, ["wrong"])
    result.ended(1.0, ["a"])
    again = Result.read(result.as_json())
    again.begin(cases)
    assert list(again.left(cases)) == [OUTSIDE]
    again.add(OUTSIDE, {"lse_abs": 0.1}, [])
    text = again.as_json()
    assert text["total"] == {"planned": 3, "right": 2, "wrong": 1, "not_run": 0}
    assert text["worst"]["decode out_abs"] == [0.5, TWO_POOLS.label]
    assert [each["case"] for each in text["failures"]] == [NO_ROWS.label]
    with pytest.raises(ValueError, match="planned: found"):
        again.begin(cases[:2])
