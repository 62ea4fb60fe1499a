"""Result files: what is in them, how they are named, what is refused when they are read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.controls import Controls
from benchmarks.harness.machine import device_slug, parse_smi
from benchmarks.harness.result import assemble, read, write
from benchmarks.harness.rounds import measure
from tests.benchmarks.fakes import BENCHMARK, FakeSession

WHEN = datetime(2026, 11, 21, 1, 2, 3, tzinfo=UTC)


def make_result(**times: float) -> dict[str, Any]:
    session = FakeSession(times or {"ours": 2.0, "theirs": 3.0})
    sessions = dict.fromkeys(session.times, session)
    results, readings = measure(sessions, BENCHMARK.cases(), rounds=3, seed=0)
    descriptions = {name: session.describe() for name in sessions}
    return assemble(BENCHMARK, results, readings, descriptions, rounds=3, isolated=False, commit="0123abcd", when=WHEN)


def test_ratios_are_ours_over_the_peer() -> None:
    case = make_result()["cases"][0]
    assert case["peers"]["theirs"]["ours_over_this"] == {"cold": 0.6667, "warm": 0.6667, "host": 0.6667}
    assert case["peers"]["ours"]["ours_over_this"]["cold"] == 1.0


def test_achieved_rates_are_held_against_the_ceilings_of_the_run() -> None:
    large = make_result()["cases"][1]
    achieved = large["peers"]["ours"]["achieved"]["cold"]  # 5 MB in 2 µs, 10 MFLOP in 2 µs
    assert achieved == {"gb_s": 2500.0, "of_copy": 0.8333, "tflops": 5.0, "of_product": 0.0071}


def test_without_ours_there_are_no_ratios() -> None:
    case = make_result(theirs=3.0)["cases"][0]
    assert case["peers"]["theirs"]["ours_over_this"] == {}


def test_a_drifting_run_says_so() -> None:
    session = FakeSession({"ours": 2.0}, readings=[Controls(3000.0, 700.0, 0.8), Controls(3000.0, 650.0, 0.8)])
    results, readings = measure({"ours": session}, BENCHMARK.cases(), rounds=1, seed=0)
    described = {"ours": session.describe()}
    result = assemble(BENCHMARK, results, readings, described, rounds=1, isolated=False, commit=None)
    assert len(result["void"]) == 1 and result["void"][0].startswith("product_tflops")


def test_files_are_named_by_date_device_and_operator_and_never_overwritten(tmp_path: Path) -> None:
    first, second = write(make_result(), tmp_path), write(make_result(), tmp_path)
    assert first.name == "2026-11-21_h100-80gb-hbm3_fake_op.json"
    assert second.name == "2026-11-21_h100-80gb-hbm3_fake_op-2.json"
    assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert read(first) == json.loads(json.dumps(make_result()))


@pytest.mark.parametrize(("text", "found"), [("{", "no JSON"), ("[]", "'list'"), ('{"schema": 0}', "found 0")])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=found) as refusal:
        read(path)
    assert "\n" not in str(refusal.value)


def test_smi_values_become_numbers() -> None:
    values = parse_smi("580.159.04, 1980, 1980, 2619, 117.48, 700.00, [N/A]\n")
    assert values["driver"] == "580.159.04"
    assert (values["sm_clock_mhz"], values["power_w"], values["temperature_c"]) == (1980, 117.48, None)


def test_device_slugs() -> None:
    assert device_slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert device_slug("NVIDIA B200") == "b200"
