"""Several buckets in one study: a winner for each, or the fewest configurations within a loss."""

from __future__ import annotations

import json
import random

import pytest

from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.tuner import buckets, cli
from dsv4.tuner.budget import Budget
from dsv4.tuner.question import Settings, study_name
from dsv4.tuner.shapes import outside
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 3, "rows_in_flight": 1})
SIZES = ({"T": 1}, {"T": 300}, {"T": 4000})
BUCKETS = ({"T": (0, 32)}, {"T": (33, None)})
DEFAULT = TARGET.default().config
PLANS = [plan.config for plan in ranked(TARGET.space(), TARGET.default())]
FEW, MANY = PLANS[7], PLANS[-1]
"""The best for few rows and the best for many; each is slow where the other is fast."""


def cost(config, sizes) -> float:
    if config == DEFAULT:
        return 2.0
    few = sizes["T"] <= 32
    return {True: 1.0, False: 9.0}[few] if config == FEW else {True: 9.0, False: 1.0}[few] if config == MANY else 3.0


def run(cache, gpu: FakeGpu, served=BUCKETS, **more):
    settings = Settings(GPU, SIZES, Budget(configurations=len(PLANS)), sampler="grid", buckets=served, **more)
    return sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu)


def served_by(cache, rows: int) -> dict:
    cache.refresh()
    variant = TARGET.default().variant
    found = cache.find("rms_norm", "sm_90a", {"d": 1536}, variant, {"T": rows}, device=GPU)
    return found.manifest.config


def test_each_bucket_keeps_its_own_winner(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    result = run(cache, gpu)
    assert result.slow == 0  # what is slow over all may win a bucket: nothing is given up
    assert result.chosen and "2 of 2 buckets" in result.why
    assert [each.best["config"] for each in result.winners] == [FEW, MANY]
    assert [each.speedup for each in result.winners] == pytest.approx([2.0, 2.0])
    assert [served_by(cache, rows) for rows in (1, 32, 33, 9000)] == [FEW, FEW, MANY, MANY]
    entries = json.loads(cache.tuned_path("rms_norm", "sm_90a").read_text())
    assert [entry["question"]["bucket"] for entry in entries] == [{"T": [0, 32]}, {"T": [33, None]}]
    for entry, sizes in zip(entries, (SIZES[:1], SIZES[1:]), strict=True):
        assert [each["sizes"] for each in entry["proof"]["compared"]] == list(sizes)  # measured again where it serves
        assert [each["sizes"] for each in entry["proof"]["timings"]] == list(sizes)
        assert entry["proof"]["default"]["us"] == pytest.approx(2.0) and entry["proof"]["score_us"] == pytest.approx(
            1.0
        )
    checks = [request for request in gpu.requests if not request.compare]
    assert all(request.sizes == SIZES and request.rungs == (15,) for request in checks)
    assert {request.beside for request in checks[1:]} == {checks[0].artifacts}  # nothing is pruned: the default alone


def test_a_bucket_where_the_default_is_best_keeps_nothing(cache):
    gpu = FakeGpu(FakeBuilder(cache), lambda config, sizes: cost(config, sizes) if sizes["T"] > 32 else 2.0)
    result = run(cache, gpu)
    assert [each.chosen for each in result.winners] == [False, True] and "1 of 2 buckets" in result.why
    assert result.winners[0].why == "the default is the fastest that was found" and result.winners[0].entry is None
    assert served_by(cache, 1) == DEFAULT and served_by(cache, 33) == MANY


def test_a_winner_that_loses_its_bucket_again_is_not_kept(cache):
    worse = FakeGpu(FakeBuilder(cache), cost, again=lambda config, sizes: 3.0 if config == FEW else cost(config, sizes))
    result = run(cache, worse)
    assert [each.chosen for each in result.winners] == [False, True]
    assert "0.667× as fast" in result.winners[0].why and served_by(cache, 1) == DEFAULT


def test_a_loss_makes_one_configuration_serve_both(cache):
    middle = PLANS[11]

    def close(config, sizes) -> float:
        return 1.02 if config == middle else cost(config, sizes)

    kept = run(cache, FakeGpu(FakeBuilder(cache), close), loss=0.03)
    assert [each.best["config"] for each in kept.winners] == [middle, middle]
    entries = json.loads(cache.tuned_path("rms_norm", "sm_90a").read_text())
    assert len(entries) == 2 and len({entry["key"] for entry in entries}) == 1
    strict = run(cache, FakeGpu(FakeBuilder(cache), close), loss=0.01)  # the same study, decided anew
    assert [each.best["config"] for each in strict.winners] == [FEW, MANY] and strict.study == kept.study
    lazy = run(cache, FakeGpu(FakeBuilder(cache), close), loss=1.0)
    assert {each.best["key"] for each in lazy.winners} == {kept.winners[0].best["key"]}


def test_a_study_goes_on_and_one_bucket_is_the_study_that_it_was(cache):
    first, second = FakeGpu(FakeBuilder(cache), cost), FakeGpu(FakeBuilder(cache), cost)
    run(cache, first)
    assert run(cache, second).winners[1].chosen
    assert not second.measured()  # nothing but the comparisons
    whole = Settings(GPU, SIZES, Budget(), bucket={"T": (0, None)})
    plan = TARGET.default()
    names = {
        study_name(TARGET, plan, settings, "key")
        for settings in (whole, Settings(GPU, SIZES, Budget(), buckets=({"T": (0, None)},)))
    }
    assert len(names) == 1
    assert study_name(TARGET, plan, Settings(GPU, SIZES, Budget(), buckets=BUCKETS), "key") not in names


def test_automatic_buckets_part_all_calls():
    rng = random.Random(5)
    for _ in range(200):
        names = ["B", "Sk"]
        every = [{"B": rng.choice([1, 4, 64]), "Sk": rng.choice([0, 1, 128, 9000]), "D": 3} for _ in range(6)]
        sizes = [each for number, each in enumerate(every) if each not in every[:number]]
        found = buckets.automatic(sizes, names)
        assert len(found) == len(sizes)
        assert sorted(place for group in buckets.grouped(found, sizes) for place in group) == list(range(len(sizes)))
        for _ in range(20):
            call = {"B": rng.randrange(200), "Sk": rng.randrange(20000)}
            assert sum(outside(bucket, call) is None for bucket in found) == 1
    assert buckets.automatic([{"T": 8}], ["T"]) == [{}]
    assert buckets.automatic([{"T": 1}, {"T": 64}], ["T"]) == [{"T": (0, 8)}, {"T": (9, None)}]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["T=1:64", "T=64:"], "T=1:64 and T=64:, which overlap"),
        (["B=1:4", "Sq=1:16"], "several bounds of one bucket are spelled NAME=LOW:HIGH,NAME=LOW:HIGH"),
        (["T=1:64", "T=x:"], "--bucket: found 'T=x:'"),
    ],
)
def test_buckets_that_share_a_call_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        buckets.parse(given)
    assert buckets.parse(["B=1:4,Sq=1:16", "B=5:"]) == [{"B": (1, 4), "Sq": (1, 16)}, {"B": (5, None)}]
    with pytest.raises(UsageError, match="T=99 lies outside all buckets"):
        buckets.grouped([{"T": (1, 4)}, {"T": (5, 9)}], [{"T": 1}, {"T": 99}])
    with pytest.raises(UsageError, match="found no shape in T=5:9"):
        buckets.grouped([{"T": (1, 4)}, {"T": (5, 9)}], [{"T": 1}])


def test_several_buckets_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "cache"))
    common = ("--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=512", "--shape", "T=1", "--shape", "T=4096")
    made_up = ("sweep", *common, "--budget", "3", "--sampler", "grid", "--measure", "fake")
    assert run_cli(cli.app, [*made_up, "--bucket", "auto", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["bucket"] for each in answer["winners"]] == [{"T": [0, 64]}, {"T": [65, None]}]
    assert not answer["chosen"] and "made up" in answer["why"]
    assert run_cli(cli.app, [*made_up, "--bucket", "T=0:64", "--bucket", "T=65:", "--loss", "3"]) == 0
    assert "bucket (T=65:): " in capsys.readouterr().out
    assert run_cli(cli.app, [*made_up, "--loss", "3"]) == 2
    assert "--loss: found one bucket" in capsys.readouterr().err
    pack = ("pack", str(tmp_path / "job.tar.gz"), "--candidates", *common)
    assert run_cli(cli.app, [*pack, "--bucket", "T=0:64", "--bucket", "T=65:"]) == 2
    assert "found 2 buckets; valid: one here" in capsys.readouterr().err
