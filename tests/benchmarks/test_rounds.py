"""The order of measurement, the summaries, and when a run is void."""

from __future__ import annotations

import pytest

from benchmarks.harness.controls import Controls, ceilings, drift
from benchmarks.harness.operator import Case
from benchmarks.harness.rounds import Summary, measure, order_of_round
from tests.benchmarks.fakes import FakeSession

CASES = [Case(f"case {i}", {"T": i}) for i in range(6)]


def test_every_other_round_goes_backwards() -> None:
    assert order_of_round(["a", "b", "c"], 0) == ["a", "b", "c"]
    assert order_of_round(["a", "b", "c"], 1) == ["c", "b", "a"]
    assert order_of_round(["a", "b", "c"], 2) == ["a", "b", "c"]


def test_peers_take_turns_within_a_round() -> None:
    session = FakeSession({"a": 1.0, "b": 2.0})
    measure({"a": session, "b": session}, CASES[:1], rounds=2, seed=0)
    cold = [peer for mode, *peer in session.asked if mode == "cold"]
    assert cold == [["a"], ["b"], ["b"], ["a"]]


def test_every_peer_gets_as_many_samples_as_there_are_rounds() -> None:
    session = FakeSession({"a": 1.0, "b": 2.0})
    (result,), _ = measure({"a": session, "b": session}, CASES[:1], rounds=7, seed=0)
    assert {name: modes["warm"].samples for name, modes in result.summaries.items()} == {"a": 7, "b": 7}
    assert result.summaries["b"]["cold"].median_us == 2.0
    assert result.summaries["b"]["host"].median_us == 20.0


def test_each_case_has_its_own_seed() -> None:
    session = FakeSession({"a": 1.0})
    measure({"a": session}, CASES[:3], rounds=1, seed=5)
    seeds = [asked[2] for asked in session.asked if asked[0] == "open"]
    assert len(set(seeds)) == 3


def test_a_skipped_peer_is_not_sampled_and_keeps_its_reason() -> None:
    session = FakeSession({"a": 1.0, "b": 2.0})
    session.skipped["b"] = "not installed"
    (result,), _ = measure({"a": session, "b": session}, CASES[:1], rounds=2, seed=0)
    assert list(result.summaries) == ["a"]
    assert result.opened["b"].skipped == "not installed"
    assert not [asked for asked in session.asked if asked[1:] == ("b",)]


def test_a_case_is_closed_when_a_sample_fails() -> None:
    session = FakeSession({"a": 1.0})
    session.breaks_at = "a"
    with pytest.raises(RuntimeError, match="fell off"):
        measure({"a": session}, CASES[:1], rounds=1, seed=0)
    assert session.asked[-1] == ("close",)


def test_controls_are_read_at_the_start_between_cases_and_at_the_end() -> None:
    one, two = FakeSession({"a": 1.0}), FakeSession({"b": 2.0})
    _, readings = measure({"a": one, "b": two}, CASES, rounds=1, seed=0)
    assert len(readings) == 2 * 3  # two processes; start, after four cases, end


def test_summary_gives_median_and_deciles() -> None:
    summary = Summary.of([float(value) for value in range(11)])
    assert (summary.median_us, summary.p10_us, summary.p90_us, summary.samples) == (5.0, 1.0, 9.0, 11)
    assert Summary.of([3.0]) == Summary(3.0, 3.0, 3.0, 1)


@pytest.mark.parametrize(("low", "void"), [(2950.0, False), (2900.0, True)])
def test_controls_more_than_two_percent_apart_make_a_run_void(low: float, void: bool) -> None:
    readings = [Controls(3000.0, 700.0, 0.8), Controls(low, 700.0, 1.6), Controls(3000.0, 700.0, 0.8)]
    reasons = drift(readings)
    assert bool(reasons) == void
    assert all("copy_gb_s" in reason for reason in reasons)


def test_ceilings_are_medians_of_each_control() -> None:
    readings = [Controls(1.0, 30.0, 7.0), Controls(2.0, 10.0, 9.0), Controls(9.0, 20.0, 8.0)]
    assert ceilings(readings) == Controls(2.0, 20.0, 8.0)


def test_no_case_is_begun_after_a_no_and_the_controls_are_read_at_the_end() -> None:
    session = FakeSession({"a": 1.0})
    answers = iter([True, False])
    results, readings = measure({"a": session}, CASES, rounds=1, seed=0, goes_on=lambda: next(answers))
    assert [result.case.label for result in results] == ["case 0", "case 1"] and len(readings) == 2
    results, _ = measure({"a": session}, CASES, rounds=1, seed=0, goes_on=lambda: False)
    assert len(results) == 1
