"""The study hands out only configurations that fit, each once, and remembers on disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dsv4.tuner.search import Search
from dsv4.tuner.target import Target, spelled

TARGET = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 3})


@pytest.fixture(scope="module")
def plans():
    return TARGET.configurations()[0]


def open_search(tmp_path: Path, plans, seed: int = 0, name: str = "study") -> Search:
    return Search(tmp_path / "studies" / "x.journal", name, plans, TARGET.default(), seed)


def cost(config) -> float:
    """The product of what a configuration's tunables are; smooth enough for a search to follow."""
    return float(math.prod(config.values()))


def finish(search: Search, count: int) -> list[str]:
    """Try ``count`` configurations; their spelling in the order in which they were proposed."""
    order = []
    while len(order) < count and (batch := search.propose(min(3, count - len(order)))):
        for number, plan in batch:
            search.tell(number, plan, cost(plan.config), None, {})
            order.append(spelled(plan.config))
    return order


def test_the_default_is_proposed_first_and_the_space_is_exhausted_without_repetition(tmp_path, plans):
    order = finish(open_search(tmp_path, plans), 10_000)
    assert order[0] == spelled(TARGET.default().config)
    assert sorted(order) == sorted(spelled(plan.config) for plan in plans)


def test_the_search_finds_a_good_configuration_early(tmp_path, plans):
    search = open_search(tmp_path, plans)
    finish(search, len(plans) // 3)
    by_cost = sorted(cost(plan.config) for plan in plans)
    best = search.best()
    assert best is not None and best.score_us is not None
    assert best.score_us <= by_cost[len(plans) // 10]


def test_an_interrupted_study_goes_on(tmp_path, plans):
    first = open_search(tmp_path, plans)
    done = finish(first, 5)
    lost = first.propose(2)  # asked for, never answered: the run was interrupted here
    second = open_search(tmp_path, plans)
    assert [spelled(tried.config) for tried in second.tried()] == done
    rest = finish(second, 10_000)
    assert not set(rest) & set(done)
    assert {spelled(plan.config) for _, plan in lost} <= set(rest)
    assert len(rest) + len(done) == len(plans)


def test_failures_are_remembered_and_never_best(tmp_path, plans):
    search = open_search(tmp_path, plans)
    (number, plan), (other, second) = search.propose(2)
    search.tell(number, plan, None, "y is off", {})
    search.tell(other, second, 7.0, None, {"artifact": "abc"})
    again = open_search(tmp_path, plans)
    assert [tried.failure for tried in again.tried()] == ["y is off", None]
    best = again.best()
    assert best is not None and best.config == second.config and best.detail == {"artifact": "abc"}


def test_another_name_is_another_study_in_the_same_journal(tmp_path, plans):
    finish(open_search(tmp_path, plans), 3)
    assert open_search(tmp_path, plans, name="other").tried() == []


def test_the_same_seed_gives_the_same_order(tmp_path, plans):
    runs = [finish(open_search(tmp_path / str(run), plans, seed=4), 12) for run in range(2)]
    assert runs[0] == runs[1]
