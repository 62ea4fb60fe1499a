"""Runs that each measured some cases become one result, and say so; runs that do not belong together do not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from benchmarks.harness.controls import Controls
from benchmarks.harness.result import assemble
from benchmarks.harness.rounds import measure
from benchmarks.merge import merged
from tests.benchmarks.fakes import BENCHMARK, FakeSession

ORDER = ["small", "large"]


def a_run(hour: int, *labels: str, us: float = 2.0, copy_gb_s: float = 3000.0) -> dict[str, Any]:
    reading = Controls(copy_gb_s=copy_gb_s, product_tflops=700.0, empty_node_us=0.8)
    session = FakeSession({"ours": us, "theirs": 3.0}, readings=[reading] * 4)
    cases = [case for case in BENCHMARK.cases() if case.label in labels]
    results, readings = measure(dict.fromkeys(session.times, session), cases, rounds=3, seed=0)
    described = {name: session.describe() for name in session.times}
    when = datetime(2026, 11, 26, hour, tzinfo=UTC)
    left = [label for label in ORDER if label not in labels]
    return assemble(
        BENCHMARK, results, readings, described, rounds=3, isolated=False, commit="0", when=when, left=left
    )  # fmt: skip


def test_two_halves_are_whole_and_each_case_names_its_run() -> None:
    result = merged([a_run(2, "large", copy_gb_s=3010.0), a_run(1, "small")], ORDER)
    assert [(case["label"], case["run"]) for case in result["cases"]] == [("small", 0), ("large", 1)]
    assert result["left"] == [] and [run["date"][11:13] for run in result["runs"]] == ["01", "02"]
    assert len(result["controls"]) == sum(len(run["controls"]) for run in result["runs"])
    assert result["cases"][1]["peers"]["ours"]["achieved"]["cold"]["of_copy"] == round(2500 / 3010, 4)


def test_the_later_run_of_a_case_counts_and_what_nobody_measured_is_left() -> None:
    result = merged([a_run(1, "small", us=2.0), a_run(3, "small", us=1.5)], ORDER)
    assert result["cases"][0]["peers"]["ours"]["cold"]["median_us"] == 1.5 and result["left"] == ["large"]


@pytest.mark.parametrize(("change", "named"), [
    ({"op": "other"}, "op: "), ({"void": ["drift"]}, "void: "), ({"device": {"name": "B200"}}, "device.name: "),
    ({"versions": {"torch": "3"}}, "versions: "),
])  # fmt: skip
def test_runs_that_do_not_belong_together_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        merged([a_run(1, "small"), {**a_run(2, "large"), **change}], ORDER)


def test_a_case_that_the_benchmark_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^cases: found small"):
        merged([a_run(1, "small"), a_run(2, "large")], ["large"])
