"""The judge of the ranking, on made-up sweeps: what it says of a perfect, a useless and a reversed prediction."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from benchmarks.cost_points import measured_calls
from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.tuner import cli
from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.model import predict, rates
from dsv4.tuner.cost.rank import Predictor
from dsv4.tuner.cost.score import Recorded, score, spearman, transfers
from dsv4.tuner.report import Row
from dsv4.tuner.target import Target

TARGET = Target("rms_norm", "sm_90a", dims={"d": 4096}, pinned={"opt_level": 3, "rows_in_flight": 1})
SIZES = [{"T": 1}, {"T": 4096}]


@pytest.fixture(scope="module")
def ranked():
    predictor = Predictor("rms_norm", SIZES, rates("sm_90a"), shipped().of(without="rms_norm"))
    return predictor.rank(TARGET.space(), TARGET.default())


def sweep_of(ranked, times, device="NVIDIA H100 80GB HBM3", study="made.up") -> Recorded:
    """A study in which the configurations took ``times`` (None: it failed)."""
    default = TARGET.default()
    about = {
        "op": "rms_norm", "arch": "sm_90a", "dims": default.dims, "variant": default.variant, "pinned": TARGET.pinned,
        "sizes": SIZES, "device": {"name": device}, "default": default.config,
    }  # fmt: skip
    rows = [
        Row(number, each.plan.config, us, None if us else "it failed", False, 0.0, [], "")
        for number, (each, us) in enumerate(zip(ranked, times, strict=True))
    ]
    return Recorded(study, about, rows)


def test_rank_correlation():
    assert spearman([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert spearman([1, 1], [1, 2]) is None and spearman([1], [1]) is None


def test_a_prediction_that_holds_scores_full_marks(ranked):
    found = score(sweep_of(ranked, [1.3 * each.us for each in ranked]), shipped())
    assert found.spearman == pytest.approx(1.0) and found.top_hits and found.top_loss < 0.01
    assert found.error == pytest.approx(1 - 1 / 1.3, abs=0.01) and found.weak is None
    assert found.configurations == len(ranked) and found.left_out == 0 and found.default_loss is not None


def test_one_that_does_not_hold_is_told(ranked):
    turned = score(sweep_of(ranked, [1 / each.us for each in ranked]), shipped())
    assert turned.spearman == pytest.approx(-1.0) and not turned.top_hits
    rng = random.Random(1)
    noise = score(sweep_of(ranked, [rng.uniform(1, 3) for _ in ranked]), shipped())
    assert abs(noise.spearman) < 0.2


def test_failures_do_not_count_and_few_configurations_are_weak(ranked):
    times = [each.us if number < 6 else None for number, each in enumerate(ranked)]
    found = score(sweep_of(ranked, times), shipped())
    assert found.configurations == 6 and "a score wants" in found.weak
    with pytest.raises(UsageError, match="no times"):
        score(sweep_of(ranked, [None for _ in ranked]), shipped())


def test_configurations_that_are_none_any_more_are_counted(ranked):
    report = sweep_of(ranked, [each.us for each in ranked])
    gone = replace(report.rows[0], config={**report.rows[0].config, "threads_per_row": 1024, "rows_per_cta": 16})
    assert score(replace(report, rows=[gone, *report.rows[1:]]), shipped()).left_out == 1
    other = replace(report, about={**report.about, "op": "moe_l1"})
    with pytest.raises(UsageError):
        score(other, shipped())


def test_what_one_gpu_tells_of_another(ranked):
    ranked = sorted(ranked, key=lambda each: each.us)
    here = sweep_of(ranked, [each.us for each in ranked], study="here")
    there = sweep_of(ranked, [each.us * (2 if n == 0 else 1) for n, each in enumerate(ranked)], "NVIDIA H200", "there")
    (found,) = transfers([here, there])
    assert found.devices == ("NVIDIA H100 80GB HBM3", "NVIDIA H200") and found.configurations == len(ranked)
    assert 0.9 < found.spearman < 1 and found.loss == pytest.approx(2 * ranked[0].us / ranked[1].us - 1, abs=0.02)
    assert transfers([here, sweep_of(ranked, [each.us for each in ranked])]) == []  # the same GPU
    elsewhere = replace(there, about={**there.about, "sizes": [{"T": 3}]})
    assert transfers([here, elsewhere]) == []


def test_the_command_judges_a_recorded_study(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "cache"))
    question = ("--op", "rms_norm", "--arch", "sm_90a")
    asked = ("--dims", "d=4096", "--set", "opt_level=3", "--budget", "6", "--measure", "fake", "--sampler", "random")
    assert run_cli(cli.app, ["sweep", *question, *asked]) == 0
    capsys.readouterr()
    assert run_cli(cli.app, ["predict", "--score", *question]) == 0
    shown = capsys.readouterr()
    assert "Spearman of 0.8 or more in" in " ".join(shown.out.split())
    assert "its times are made up" in shown.err and "a score wants" in shown.err
    assert run_cli(cli.app, ["predict", "--score", *question, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"][0]["configurations"] == 6 and found["transfers"] == []


def test_the_dated_results_are_still_met():
    """Guards the launches' description: a template or spec that changed and left it behind shows here."""
    calls = [call for call in measured_calls() if not call.left_out]
    chip, calibration = rates("sm_90a"), shipped()
    factors = []
    for call in calls:
        coefficients = calibration.of(without=call.point.group)
        us = predict(call.point.launches, chip, coefficients).us
        factors.append(max(us / call.point.measured_us, call.point.measured_us / us))
    factors.sort()
    assert len(factors) > 100 and factors[len(factors) // 2] < 1.15 and factors[int(0.9 * len(factors))] < 1.5
