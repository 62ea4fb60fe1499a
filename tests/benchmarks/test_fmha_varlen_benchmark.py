"""What benchmarks/fmha_varlen.py counts and how it lays out its cases; no GPU is needed for that."""

from __future__ import annotations

import pytest

from benchmarks.fmha_varlen import BENCHMARK, kernel, lengths, make_case, visible
from benchmarks.kernels import recorded
from dsv4.generator.spec import plan


def test_labels_are_unique_and_there_are_rows_and_pages_of_equal_and_of_mixed_lengths() -> None:
    cases = BENCHMARK.cases()
    assert len({case.label for case in cases}) == len(cases)
    assert {(bool(case.sizes["page"]), bool(case.sizes["mixed"])) for case in cases} == {
        (paged, mixed) for paged in (False, True) for mixed in (False, True)
    }


def test_mixed_lengths() -> None:
    found = lengths(make_case(5, 100, 0, False, mixed=True))
    assert sorted(found) == [20, 40, 60, 80, 100] and found[0] != 100 != found[-1]
    assert lengths(make_case(3, 100, 64, False, mixed=False)) == [100, 100, 100]


@pytest.mark.parametrize("causal", [False, True])
def test_visible_pairs_by_counting(causal: bool) -> None:
    case = make_case(3, 9, 0, causal, mixed=True)
    pairs = [(i, j) for n in lengths(case) for i in range(n) for j in range(n)]
    assert visible(case) == sum(not causal or j <= i for i, j in pairs)
    assert BENCHMARK.work(case).flops == 4 * 32 * 128 * visible(case)


def test_the_kernels_it_asks_for_can_be_planned() -> None:
    with recorded() as wanted:
        for case in BENCHMARK.cases():
            kernel(case, pdl=False)
    for each in wanted:
        assert plan(each.op, "sm_90a", dims=dict(each.dims), variant=dict(each.variant)).is_default
