"""Kernels that a spec has for some sizes of its own: there they are what a winner has to beat."""

from __future__ import annotations

import json
import random

import pytest

from dsv4.generator.cli import run as run_cli
from dsv4.tuner import cli, question
from dsv4.tuner.budget import Budget
from dsv4.tuner.model_jobs import Job
from dsv4.tuner.question import Settings
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, untuned
from dsv4.tuner.tune_model import build_defaults
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("mhc_pre", "sm_90a", dims={"d": 4096}, pinned={"opt_level": 2})
DEFAULT = TARGET.default().config
(OWN,) = TARGET.planner().bucketed()
SIZES = ({"T": 64}, {"T": 2048})
BUCKETS = ({"T": (0, 112)}, {"T": (113, None)})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(question, "SURVEYED_MAX", 20)


def run(cache, cost, **more):
    gpu = FakeGpu(FakeBuilder(cache), cost, **more)
    settings = Settings(GPU, SIZES, Budget(configurations=8), sampler="random", buckets=BUCKETS)
    return sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu), gpu


def noise(config) -> float:
    return random.Random(json.dumps(config, sort_keys=True)).random()


def test_each_size_has_what_serves_it_untuned():
    planner = TARGET.planner()
    assert untuned(planner, {"T": 112}).config == OWN.config != DEFAULT and untuned(planner, {"T": 1}).bucket
    assert untuned(planner, {"T": 113}).config == DEFAULT


def test_it_is_tried_and_where_it_is_the_fastest_nothing_is_kept(cache):
    def cost(config, sizes) -> float:
        return 1.0 if config == OWN.config else 2.0 if config == DEFAULT else 3.0 + noise(config)

    result, gpu = run(cache, cost)
    assert OWN.config in gpu.measured()
    few, many = result.winners
    assert not few.chosen and few.best["config"] == OWN.config and "the spec's own kernel for these sizes" in few.why
    assert many.chosen and many.best["config"] == OWN.config  # there the default is to be beaten, and is


def test_what_beats_the_default_alone_is_not_kept_there(cache):
    best = {}

    def cost(config, sizes) -> float:
        if config == OWN.config:
            return 1.5
        if config == DEFAULT:
            return 3.0
        best.setdefault(str(config), config)
        return 1.4 if config == next(iter(best.values())) else 4.0

    def again(config, sizes) -> float:  # on other inputs it is slower than the spec's own, and faster than the default
        return 1.6 if cost(config, sizes) == 1.4 else cost(config, sizes)

    result, _ = run(cache, cost, again=again)
    few, many = result.winners
    assert not few.chosen and "0.938× as fast" in few.why
    assert many.chosen and many.speedup == pytest.approx(3.0 / 1.6)


def test_a_default_that_beats_it_becomes_an_entry(cache):
    def cost(config, sizes) -> float:
        return 1.0 if config == DEFAULT else 2.0 if config == OWN.config else 3.0 + noise(config)

    result, _ = run(cache, cost)
    few, many = result.winners
    assert few.chosen and few.best["config"] == DEFAULT and few.speedup == pytest.approx(2.0)
    assert not many.chosen and many.why == "the default is the fastest that was found"
    cache.refresh()
    (entry,) = cache.tuned("mhc_pre", "sm_90a")
    assert entry.config == DEFAULT and entry.question.bucket == {"T": (0, 112)}


def test_a_whole_model_begins_with_both_compiled(cache):
    builder = FakeBuilder(cache)
    build_defaults([Job("mhc_pre", "sm_90a", {"d": 4096}, {})], builder, lambda one: None)
    assert [plan.config for plan in builder.built] == [DEFAULT, OWN.config] and builder.built[1].bucket == OWN.bucket


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run_cli(cli.app, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_where_one_default_is_meant_shapes_of_several_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path))
    what = ("--op", "mhc_pre", "--arch", "sm_90a", "--dims", "d=4096")
    both = ("--shape", "T=64", "--shape", "T=2048")
    code, _, err = call(capsys, "predict", *what, *both)
    assert code == 2 and "several default kernels for (its own for T=0:112)" in err and len(err.splitlines()) == 1
    code, _, err = call(capsys, "pack", str(tmp_path / "x.tar.gz"), "--candidates", *what, "--shape", "T=64")
    assert code == 2 and "a default kernel of its own for (T=0:112)" in err and len(err.splitlines()) == 1
