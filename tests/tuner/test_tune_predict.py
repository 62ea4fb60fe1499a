"""The cost model: counts that follow a configuration, a calibration that finds what is there, a ranking of a space."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from benchmarks.harness.check_file import CHECKS
from dsv4.generator.spec import SpecError, load_op
from dsv4.generator.spec.load import list_ops
from dsv4.generator.verify.registry import workload_sizes
from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.counts import LaunchCounts, count
from dsv4.tuner.cost.fit import Point, fit
from dsv4.tuner.cost.launches import known_ops
from dsv4.tuner.cost.model import NAMES, Coefficients, predict, rates
from dsv4.tuner.cost.rank import APART, Predictor, order, steps
from dsv4.tuner.seeds import SEEDS_MAX, in_turn, predicted, starts
from dsv4.tuner.target import Target

FMHA = Target("fmha", "sm_90a", dims={"D": 128})
NORM = Target("rms_norm", "sm_90a", dims={"d": 4096}, pinned={"opt_level": 3})
SQUARE = {"B": 1, "Hq": 8, "Hkv": 8, "Sq": 2048, "Sk": 2048}


def one(target: Target, sizes: dict[str, int], **config) -> LaunchCounts:
    (counts,) = count(target.planner().plan({**target.default().config, **config}), sizes)
    return counts


def us(target: Target, sizes: dict[str, int], **config) -> float:
    return predict([one(target, sizes, **config)], rates(target.arch), shipped().of()).us


@pytest.mark.parametrize("op", known_ops())
def test_every_described_operator_has_counts_for_its_default(op):
    assert op in list_ops(planned=False)
    for arch in load_op(op).archs:
        launches = count(Target(op, arch).default(), workload_sizes(op))
        assert launches
        for each in launches:
            assert each.ctas > 0 and each.slots >= each.resident >= 1 and 0 < each.share <= 1 and each.instructions > 0
            assert each.waves == math.ceil(each.ctas / each.slots)
        found = predict(launches, rates(arch), shipped().of())
        assert 0 < found.us < 1e6 and found.parts[found.bound] == max(found.parts.values())


def test_an_operator_or_a_size_that_is_not_there_is_named():
    with pytest.raises(SpecError, match="a size for T"):
        count(NORM.default(), {})
    assert count(NORM.default(), {"T": 0}) == []
    assert predict([], rates("sm_90a"), Coefficients()).us == 0


def test_a_wave_that_is_not_full_takes_as_long_as_a_full_one():
    tiles = {"B": 1, "Hkv": 1, "Sq": 128, "Sk": 2048}
    full, more = (one(FMHA, {**tiles, "Hq": number}, persistent_ctas=0) for number in (132, 133))
    assert (full.waves, more.waves) == (1, 2) and full.share == 1 / 132 and more.share == 2 / 133
    chip, coefficients = rates("sm_90a"), shipped().of()
    assert predict([more], chip, coefficients).us > 1.7 * predict([full], chip, coefficients).us


def test_padded_tiles_cost_what_whole_ones_do():
    short, whole = ({**SQUARE, "Sq": size, "Sk": size} for size in (129, 256))
    assert one(FMHA, short).mma_flop == one(FMHA, whole).mma_flop
    assert one(FMHA, short, tile_m=64, consumer_warpgroups=1, ping_pong=False).mma_flop < one(FMHA, short).mma_flop


def test_stages_splits_and_occupancy_enter():
    assert one(FMHA, SQUARE, kv_stage=1).in_flight * 2 == one(FMHA, SQUARE, kv_stage=2).in_flight
    assert us(FMHA, SQUARE, kv_stage=1) > us(FMHA, SQUARE)
    narrow = one(NORM, {"T": 4096}, threads_per_row=512, rows_per_cta=2)
    assert narrow.resident < one(NORM, {"T": 4096}).resident
    router = Target("router", "sm_90a")
    assert one(router, {"T": 1}, k_splits=4).ctas == 4 * one(router, {"T": 1}, k_splits=1, warps=16).ctas
    mhc = Target("mhc_pre", "sm_90a")
    seven, eight = (one(mhc, {"T": 8192}, clusters=number) for number in (7, 8))
    assert (seven.waves, eight.waves) == (1, 2)  # clusters of 16 CTAs fit seven times
    assert us(mhc, {"T": 8192}, clusters=7) < us(mhc, {"T": 8192}, clusters=8)


def test_more_memory_bandwidth_helps_what_is_bound_by_it():
    counts = [one(NORM, {"T": 16384})]
    h100, h200 = (predict(counts, rates("sm_90a", name), Coefficients()) for name in ("NVIDIA H100", "NVIDIA H200"))
    assert h100.bound == h200.bound == "hbm" and 1.3 < h100.us / h200.us < 1.45


def test_calibration_finds_coefficients_that_were_used():
    chip = rates("sm_90a")
    truth = Coefficients(launch_us=1.4, trip_us=0.4, hbm_share=0.75, mma_share=0.6, issue_share=0.5)
    points = []
    for tokens in (1, 64, 1024, 16384, 65536):
        points.append(Point(f"rms_norm {tokens}", "", (one(NORM, {"T": tokens}),), 0.0))
        points.append(Point(f"fmha {tokens}", "", (one(FMHA, {**SQUARE, "Sq": min(tokens, 8192)}),), 0.0))
    points = [Point(p.group, p.label, p.launches, predict(p.launches, chip, truth).us) for p in points]
    found = fit(points, chip)
    for point in points:
        assert predict(point.launches, chip, found).us == pytest.approx(point.measured_us, rel=0.04)
    assert found.hbm_share == pytest.approx(0.75, rel=0.05) and found.mma_share == pytest.approx(0.6, rel=0.1)
    assert found.cluster_us == pytest.approx(Coefficients().cluster_us)  # nothing says anything about it


def test_the_shipped_calibration_says_where_it_comes_from():
    found = shipped()
    assert found.sources and found.calls > 100 and set(found.without) <= set(known_ops()) | {"router"}
    unmeasured = next(op for op in known_ops() if op not in found.without)
    assert tuple(found.of().as_dict()) == NAMES and found.of(without=unmeasured) == found.of()
    assert found.of(without="fmha") != found.of()
    newest = max(CHECKS.glob("*_cost_model.json"))
    check = json.loads(newest.read_text())
    assert (check["calls"], tuple(check["files"])) == (found.calls, found.sources)
    assert found.trust("sm_100a").startswith("untested") and "not measured" in found.trust("sm_90a")


@pytest.fixture(scope="module")
def ranking():
    predictor = Predictor("rms_norm", [{"T": 1}, {"T": 4096}], rates("sm_90a"), shipped().of())
    return predictor, predictor.rank(NORM.space(), NORM.default())


def test_a_small_space_is_ranked_whole_and_near_ties_go_to_the_default(ranking):
    _, ranked = ranking
    assert len(ranked) == NORM.space().tally().allowed
    for before, after in pairwise(ranked):
        assert after.us >= before.us / (1 + APART)
    assert ranked[-1].us > 1.5 * ranked[0].us
    default = next(each for each in ranked if each.plan.is_default)
    alike = [each for each in ranked if each.us <= ranked[0].us * (1 + APART)]
    if default in alike:
        assert ranked[0] is default
    assert order(reversed(ranked), NORM.default()) == order(ranked, NORM.default())


def test_a_large_space_is_sampled_and_searched_around_the_best(ranking):
    predictor, ranked = ranking
    few = predictor.rank(NORM.space(), NORM.default(), pool_max=40)
    assert 40 <= len(few) < len(ranked) and few[0].us <= ranked[0].us * 1.02
    near = list(steps(NORM.space(), NORM.default().config))
    assert near and all(NORM.space().nearest(config) == config for config in near)


def test_a_search_starts_with_what_serves_some_sizes_untuned(cache):
    target = Target("mhc_pre", "sm_90a", dims={"d": 4096}, variant={"norm": True})
    (few,) = starts(cache, target, [{"T": 1}])["spec"]
    assert few["mixers"] == 0 != target.default().config["mixers"]
    assert starts(cache, NORM, [{"T": 1}])["spec"] == []


def test_a_search_starts_with_what_is_predicted(cache):
    found = starts(cache, NORM, [{"T": 4096}])
    assert found["tuned"] == [] and len(found["predicted"]) == SEEDS_MAX
    assert in_turn({**found, "tuned": found["predicted"][:2]}) == found["predicted"]
    assert NORM.default().config not in found["predicted"]
    times = [us(NORM, {"T": 4096}, **config) for config in found["predicted"]]
    assert len(set(times)) == len(times)  # what the model cannot tell apart is tried once
    assert predicted(Target("moe_l1", "sm_90a"), [{}]) == []
