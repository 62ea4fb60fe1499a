"""What search and cost model are worth on whole spaces that were swept on an H100 (``benchmarks/results/spaces``)."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.keep_spaces import SPACES
from dsv4.generator.cli import run as run_cli
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner import cli
from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.score import SPEARMAN_AIM, TOP_WITHIN, Recorded, score
from dsv4.tuner.recorded import by_shape, read_report
from dsv4.tuner.replay import Recording, Score, recording, replay
from dsv4.tuner.report import Report

SWEPT = {path.stem.split("_", 2)[2]: path for path in sorted(SPACES.glob("*_h100-80gb-hbm3_*.json"))}
SEARCH_AIM = 0.15
"""Of the space, until a search has something within 2 % of its best."""


@cache
def swept(op: str) -> Report:
    return read_report(SWEPT[op])


@cache
def at(op: str, place: int) -> Recording:
    return recording(by_shape(swept(op))[place])


def searched(found: Recording, seeds: int = 20, **more) -> dict[str, Score]:
    return {each.sampler: each for each in replay(found, ["tpe", "random"], seeds=seeds, **more)}


@pytest.mark.parametrize("op", sorted(SWEPT))
def test_the_order_and_the_first_five_are_predicted(op):
    """With coefficients found without the operator; the order over all shapes, the first five at each of them, too."""
    report = swept(op)
    found = score(Recorded.of(report), shipped())
    assert found.left_out == 0 and found.spearman is not None and found.spearman >= SPEARMAN_AIM
    assert all(score(Recorded.of(each), shipped()).top_loss <= TOP_WITHIN for each in (report, *by_shape(report)))


@pytest.mark.parametrize(("op", "place"), [("quantize", 0), ("rms_norm_quant", 1)], ids=["quantize", "rms_norm_quant"])
def test_the_search_finds_the_best_sooner_than_chance(op, place):
    """The shapes at which the default is more than 5 % off; 20 seeds, no seeds from other studies, no prediction."""
    found = at(op, place)
    default_us = found.times_us[canonical_json(found.begin().config)]  # the one of then
    assert default_us is not None and found.best_us * 1.05 < default_us
    scores = searched(found)
    assert scores["tpe"].share <= SEARCH_AIM and scores["tpe"].median < 0.7 * scores["random"].median


@pytest.mark.parametrize(("op", "place"), [("quantize", 0), ("rms_norm_quant", 1)], ids=["quantize", "rms_norm_quant"])
def test_it_does_so_in_batches_and_from_a_random_start(op, place):
    for more in ({"batch": 8, "seeds": 10}, {"anywhere": True, "seeds": 10}):
        scores = searched(at(op, place), **more)
        assert scores["tpe"].share <= SEARCH_AIM and scores["tpe"].median < scores["random"].median


def test_a_replay_begins_where_it_is_told(capsys):
    found = at("router", 2)
    assert [
        each.median for each in replay(found, ["tpe"], seeds=2, starts=[{"k_splits": 1, "warps": 16, "opt_level": 2}])
    ] == [2]
    file = str(SWEPT["router"])
    assert run_cli(cli.app, ["replay", file, "--shape", "T=64", "--seeds", "2", "--predicted"]) == 0
    assert "│ 2 " in capsys.readouterr().out  # the default, then what is predicted to be the best
    assert run_cli(cli.app, ["replay", file, "--shape", "T=64", "--seeds", "2", "--batch", "8", "--anywhere"]) == 0
