"""How far a winner serves: as far from its shapes as it was measured not to be slower."""

from __future__ import annotations

import json

import pytest

from dsv4.tuner.budget import Budget
from dsv4.tuner.question import Settings
from dsv4.tuner.reach import narrowed, probes
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 3, "rows_in_flight": 1})
DEFAULT = TARGET.default().config
BEST = [plan.config for plan in ranked(TARGET.space(), TARGET.default())][3]
SHAPES = ({"T": 1}, {"T": 64})
BUCKETS = ({"T": (0, 8)}, {"T": (9, None)})


def values(bucket, *sizes):
    return [(each.name, each.end, each.value) for each in probes(bucket, sizes)]


def test_probes_go_from_the_shapes_to_the_bounds_and_beyond_the_last_shape_where_there_is_none():
    assert values({"T": (0, 8)}, {"T": 1}) == [("T", "high", 2), ("T", "high", 8)]
    assert values({"T": (9, None)}, {"T": 64}) == [
        ("T", "low", 24), ("T", "low", 9), ("T", "high", 128), ("T", "high", 256),
    ]  # fmt: skip
    assert values({"T": (9, 100)}, {"T": 9}, {"T": 100}) == [] == values({}, {"T": 3})
    assert values({"T": (1, 3)}, {"T": 2}) == [("T", "low", 1), ("T", "high", 3)]  # halfway lies the shape itself


def test_other_sizes_stay_but_for_those_that_are_the_same_number():
    (low, *_) = probes({"T": (512, None)}, [{"T": 2048, "length": 2048, "S": 8}])
    assert low.sizes == {"T": 1024, "length": 1024, "S": 8}
    (one, *_) = probes({"T": (0, 4)}, [{"T": 1, "length": 1}])
    assert one.sizes == {"T": 2, "length": 1}  # sequences of one token each
    both = probes({"B": (1, 4), "K": (0, 9)}, [{"B": 2, "K": 4}])
    assert {json.dumps(each.sizes) for each in both if each.name == "K"} == {
        json.dumps({"B": 2, "K": size}) for size in (2, 1, 6, 9)
    }


@pytest.mark.parametrize(
    ("slow", "left"),
    [
        ((), (9, None)),
        ((9,), (24, None)),
        ((24,), (64, None)),  # what lies beyond is not asked for, however it does there
        ((256,), (9, 128)),
        ((128,), (9, 64)),
        ((9, 24, 128, 256), (64, 64)),
    ],
)
def test_a_bucket_ends_before_the_first_probe_that_is_slower(slow, left):
    looked = probes(BUCKETS[1], SHAPES[1:])
    assert narrowed(BUCKETS[1], SHAPES[1:], looked, lambda probe: probe.value not in slow) == {"T": left}


def run(cache, cost, again=None, buckets=BUCKETS, shapes=SHAPES):
    gpu = FakeGpu(FakeBuilder(cache), cost, again=again)
    settings = Settings(GPU, shapes, Budget(), sampler="grid", buckets=buckets)
    return gpu, sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu)


def spans(cache) -> list:
    return [each["question"]["bucket"]["T"] for each in json.loads(cache.tuned_path("rms_norm", "sm_90a").read_text())]


def test_a_winner_that_is_slower_towards_a_bound_does_not_serve_there(cache):
    def cost(config, sizes):
        return (1.0 if 64 <= sizes["T"] < 200 else 3.0) if config == BEST else 2.0

    _, result = run(cache, cost)
    default, winner = result.winners
    assert not default.chosen and default.bucket == {"T": (0, 8)}
    assert winner.chosen and winner.bucket == {"T": (64, 128)} and spans(cache) == [[64, 128]]
    assert "slower beyond T=64:128, which it serves" in winner.why
    cache.refresh()
    for rows, config in ((63, DEFAULT), (64, BEST), (128, BEST), (129, DEFAULT)):
        found = cache.find("rms_norm", "sm_90a", {"d": 1536}, TARGET.default().variant, {"T": rows}, device=GPU)
        assert found.manifest.config == config


def test_one_that_fails_there_serves_its_shapes_and_is_not_forgotten_for_it(cache):
    class Fails(FakeGpu):
        def __call__(self, request, **more):
            found = super().__call__(request, **more)
            if request.compare and any(sizes["T"] > 64 for sizes in request.sizes):
                found[0].compared, found[0].error = found[0].compared[:1], "ValueError: no such workload"
            return found

    gpu = Fails(FakeBuilder(cache), lambda config, sizes: 1.0 if config == BEST else 2.0)
    settings = Settings(GPU, SHAPES, Budget(), sampler="grid", buckets=BUCKETS)
    result = sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu)
    assert [winner.bucket for winner in result.winners] == [{"T": (0, 8)}, {"T": (24, 64)}]  # it got to T=24
    cache.refresh()
    artifacts = cache.artifacts("rms_norm", "sm_90a")
    assert all(artifact.failed_check() is None for artifact in artifacts)


def test_an_unbounded_winner_is_measured_at_its_shapes_only(cache):
    gpu, result = run(cache, lambda config, sizes: 1.0 if config == BEST else 2.0, buckets=(), shapes=SHAPES[1:])
    assert result.chosen and result.winners == []
    assert {sizes["T"] for request in gpu.requests for sizes in request.sizes} == {64}
