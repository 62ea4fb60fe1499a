"""What a recorded study is good for: few kernels for many shapes, and a judgement of the search."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pytest

from dsv4.generator.cli import run as run_cli
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner import cli, fake
from dsv4.tuner.budget import Budget
from dsv4.tuner.cover import cover
from dsv4.tuner.question import Settings
from dsv4.tuner.replay import Recording, replay
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512}, pinned={"opt_level": 3})


def test_one_configuration_suffices_where_it_is_near_everywhere():
    found = cover({"a": [1.00, 2.00], "b": [1.02, 2.02], "c": [5.0, 1.99]}, loss=0.03)
    assert found.chosen == ["a"] and found.serves == ["a", "a"] and found.is_smallest
    assert found.losses == pytest.approx([1.0, 2.00 / 1.99])


def test_two_are_taken_where_one_is_not_enough():
    times = {"small": [1.0, 9.0, 9.0], "large": [4.0, 2.0, 3.0], "middling": [1.5, 2.5, 3.6]}
    assert cover(times, loss=0.03).chosen == ["large", "small"]
    assert cover(times, loss=0.03).serves == ["small", "large", "large"]
    assert cover(times, loss=0.60).chosen == ["middling"]
    assert cover({"a": [1.0]}, loss=0.0).chosen == ["a"]


def test_it_is_the_smallest_set_by_trying_all():
    rng = random.Random(3)
    for _ in range(30):
        times = {f"c{n}": [rng.choice((1.0, 1.01, 1.2, 2.0)) for _ in range(5)] for n in range(7)}
        found = cover(times, loss=0.05)
        best = [min(each[s] for each in times.values()) for s in range(5)]

        def holds(names, times=times, best=best):
            return all(min(times[name][s] for name in names) <= best[s] * 1.05 for s in range(5))

        assert found.is_smallest and holds(found.chosen) and max(found.losses) <= 1.05
        assert not any(holds(names) for names in combinations(times, len(found.chosen) - 1) if names)


def test_many_configurations_are_covered_greedily_and_in_time():
    rng = random.Random(4)
    times = {f"c{n:04}": [rng.uniform(1.0, 1.5) for _ in range(12)] for n in range(2000)}
    found = cover(times, loss=0.02)
    assert not found.is_smallest and max(found.losses) <= 1.02 and len(found.chosen) <= 12


def recorded() -> Recording:
    plans = ranked(TARGET.space(), TARGET.default())
    return Recording(TARGET, {canonical_json(p.config): fake.made_up_us(p.config, {"T": 64}) for p in plans})


def test_a_replay_finds_the_best_and_is_the_same_again():
    times = recorded()
    (score,) = replay(times, ["random"], seeds=6, within=0.02)
    assert len(score.trials) == 6 and all(1 <= each <= len(times.times_us) for each in score.trials)
    assert score.share == score.median / len(times.times_us)
    assert replay(times, ["random"], seeds=6, within=0.02) == [score]
    (exact,) = replay(times, ["grid"], seeds=1, within=0.0)
    in_order = [canonical_json(config) for config in TARGET.space().in_order()]
    best = min(times.times_us, key=lambda key: times.times_us[key] or 0.0)
    assert exact.trials[0] in (in_order.index(best) + 1, in_order.index(best) + 2)  # the default comes first


def test_failures_in_a_recording_are_never_the_goal():
    times = recorded()
    best = min(times.times_us, key=lambda key: times.times_us[key] or 0.0)
    without = Recording(TARGET, {**times.times_us, best: None})
    assert without.best_us > times.best_us
    assert replay(without, ["grid"], seeds=1, within=0.0)[0].trials[0] >= 1


def test_a_weak_recording_is_called_one():
    times = recorded()
    assert "configurations are recorded; a judgement wants 200" in str(times.weakness(None))
    many = Recording(TARGET, {str(n): 1.0 + n for n in range(300)})
    assert many.weakness(1.04) == "the default is within 5% of the best" and many.weakness(1.2) is None


def test_both_on_the_command_line(cache, monkeypatch, capsys):
    builder = fake.FakeBuilder()
    settings = Settings(fake.DEVICE, ({"T": 1}, {"T": 4096}), Budget(), sampler="grid", batch=16, rounds=5)
    sweep(TARGET, settings, cache=cache, builder=builder, measure=fake.FakeGpu(builder))
    monkeypatch.setenv("DSV4_CACHE", str(cache.root))
    assert run_cli(cli.app, ["cover", "--loss", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["is_smallest"] and len(answer["shapes"]) == 2 and answer["shapes"][0]["sizes"] == {"T": 1}
    assert run_cli(cli.app, ["cover"]) == 0 and "kernels for 2 shapes" in capsys.readouterr().out
    assert run_cli(cli.app, ["replay", "--sampler", "random", "--seeds", "2"]) == 0
    captured = capsys.readouterr()
    assert "random" in captured.out and "a weak judgement" in captured.err
    assert run_cli(cli.app, ["replay", "--sampler", "luck"]) == 2
    assert "valid: tpe, random" in capsys.readouterr().err
