"""Budgets: what is one, what contradicts itself, when they end; and who survives a rung."""

from __future__ import annotations

import pytest

from dsv4.generator.console import UsageError
from dsv4.tuner.budget import Budget, Meter, since_best
from dsv4.tuner.halving import rungs, survivors


@pytest.mark.parametrize(
    ("texts", "patience", "budget"),
    [
        (["40"], None, Budget(configurations=40)),
        (["90s"], None, Budget(seconds=90)),
        (["1.5h"], None, Budget(seconds=5400)),
        (["40", "10m"], None, Budget(40, 600)),
        (["40,10m"], 39, Budget(40, 600, 39)),
        (["10m"], 1000, Budget(None, 600, 1000)),
    ],
)
def test_budgets(texts, patience, budget):
    assert Budget.parse(texts, patience) == budget


@pytest.mark.parametrize("text", ["", "0", "-3", "10 m", "m", "0s", "ten", "40,", "1e3"])
def test_what_is_no_budget_is_one_line(text):
    with pytest.raises(UsageError, match="--budget: found"):
        Budget.parse([text])


@pytest.mark.parametrize(
    ("texts", "patience", "words"),
    [
        (["40", "60"], None, "--budget: found '60' after another one"),
        (["40,10m", "2h"], None, "--budget: found '2h' after another one"),
        (["40"], 40, "--patience: found 40 with a budget of 40 configurations, which ends first; valid: 1..39"),
        (["1"], 3, "--patience: found 3 with a budget of 1 configuration; valid: no --patience"),
        (["10m"], 0, "--patience: found 0"),
    ],
)
def test_contradictions_are_one_line(texts, patience, words):
    with pytest.raises(UsageError) as caught:
        Budget.parse(texts, patience)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_meter_ends_with_the_first_that_is_spent():
    assert Meter(Budget(configurations=3)).over([1.0, None], taken=2) is None
    assert "3 configurations" in (Meter(Budget(configurations=3)).over([1.0], taken=3) or "")
    assert "0.001 s" in (Meter(Budget(seconds=0.001)).over([], taken=0) or "0.001 s")
    assert Meter(Budget(patience=2)).over([3.0, 1.0, None], 3) is None
    assert Meter(Budget(patience=2)).over([3.0, 1.0, None, 2.0], 4) == "2 configurations brought nothing better"
    assert Meter(Budget()).over([1.0] * 1000, 1000) is None
    assert since_best([]) == since_best([None, None]) == 0


def test_rungs_grow_by_three_up_to_the_rounds():
    assert rungs(15) == (5, 15) and rungs(45) == (5, 15, 45) and rungs(14) == (14,) and rungs(3) == (3,)


def test_the_best_third_and_all_near_the_best_survive():
    assert survivors({"a": 9.0, "b": 3.0, "c": 6.0, "d": 5.0, "e": 8.0, "f": 7.0}, None) == ["b", "d"]
    assert survivors({"a": 9.0, "b": 3.0, "c": 3.1, "d": 3.12, "e": 8.0}, None) == ["b", "c", "d"]
    assert survivors({"a": 9.0, "b": 3.0, "c": 4.0}, 2.0) == []
    assert survivors({"a": 2.05, "b": 3.0, "c": 2.3}, 2.0) == ["a"]
    assert survivors({"a": 1.0, "b": 1.0}, None) == ["a", "b"]
    assert survivors({}, 1.0) == []
