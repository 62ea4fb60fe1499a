"""The sweep keeps a winner only if it is right and faster, records what it learns, and goes on after an interrupt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.console import CheckFailed
from dsv4.runtime.tuned import Policy
from dsv4.tuner.budget import Budget
from dsv4.tuner.protocol import geometric_mean
from dsv4.tuner.question import Settings
from dsv4.tuner.seeds import neighbours
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked
from dsv4.tuner.worker import Outcome
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 3, "rows_in_flight": 1})
SIZES = ({"T": 1}, {"T": 300})
DEFAULT = TARGET.default().config
PLANS = list(ranked(TARGET.space(), TARGET.default()))
GOAL = PLANS[-1].config  # the one that differs most from the default
NAME = next(name for name in GOAL if GOAL[name] != DEFAULT[name])


def cost(config, sizes) -> float:
    """The more a configuration agrees with GOAL, the faster."""
    return sizes["T"] ** 0.5 * (1 + sum(config[name] != GOAL[name] for name in GOAL) / 10)


def settings(configurations: int = 30, **more) -> Settings:
    more = {"sampler": "random", "batch": 4, **more}  # which costs no time; what samplers find is tested elsewhere
    return Settings(GPU, SIZES, Budget(configurations=configurations), **more)


def entries(cache) -> list:
    path = cache.tuned_path("rms_norm", "sm_90a")
    return json.loads(path.read_text()) if path.exists() else []


def run(cache, gpu: FakeGpu, *, configurations: int = 30, **more):
    return sweep(TARGET, settings(configurations, **more), cache=cache, builder=gpu.builder, measure=gpu)


def test_the_winner_is_measured_again_and_chosen(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    result = run(cache, gpu, bucket={"T": (1, 300)})
    assert result.chosen and result.speedup > 1 and result.tried == 30 and not result.failed
    assert "budget of 30" in result.ended
    assert result.default["config"] == DEFAULT
    assert cost(result.best["config"], {"T": 1}) < cost(DEFAULT, {"T": 1})
    last = gpu.requests[-1]
    assert last.compare and len(last.artifacts) == 2
    (entry,) = entries(cache)
    question, proof = entry["question"], entry["proof"]
    assert question["device"] == GPU.model_dump() and question["dims"] == {"d": 1536}
    assert question["bucket"] == {"T": [1, 300]} and question["toolchain"] == {"cutlass": "4.8.1"}
    assert question["policy"] == {"launch": "graph", "l2": "cold"}
    assert entry["key"] == result.best["key"] == Path(last.artifacts[1]).name
    assert proof["speedup"] == result.speedup and proof["default"]["config"] == DEFAULT and proof["tried"] == 30
    assert [each["sizes"] for each in proof["timings"]] == list(SIZES) and proof["refused"]
    (kept,) = cache.tuned("rms_norm", "sm_90a")
    assert kept.name == result.entry
    found = cache.find("rms_norm", "sm_90a", {"d": 1536}, question["variant"], {"T": 7}, device=GPU)
    assert found is not None and found.manifest.key == entry["key"]


def test_every_request_has_the_policy_of_the_question(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    warm = Policy(launch="eager", l2="warm")
    cold = run(cache, FakeGpu(gpu.builder, cost), configurations=8).study
    result = run(cache, gpu, configurations=8, policy=warm)
    assert result.chosen and {request.policy for request in gpu.requests} == {warm} and gpu.requests[-1].compare
    assert result.study != cold  # another question, another study
    assert [entry["question"]["policy"] for entry in entries(cache)] == [Policy().model_dump(), warm.model_dump()]


def test_every_candidate_is_checked_and_evidence_is_written(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    run(cache, gpu, configurations=5)
    for request in gpu.requests:
        assert not request.passed
    folder = Path(gpu.requests[0].artifacts[0])
    evidence = read_evidence(folder)
    assert evidence.rungs() == ("gpu",) and evidence.checks[0].device == "Fake GPU"
    assert [m["sizes"] for m in evidence.measurements] == list(SIZES)


def test_a_fast_but_wrong_configuration_never_wins(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost, wrong=lambda config: config[NAME] == GOAL[NAME])
    result = run(cache, gpu)
    assert result.failed and all("y is off" in each["why"] for each in result.failed)
    assert result.best["config"][NAME] != GOAL[NAME]
    bad = [Path(r.artifacts[i]) for r in gpu.requests for i in range(len(r.artifacts))
           if gpu.builder.plans[r.artifacts[i]].config[NAME] == GOAL[NAME]]  # fmt: skip
    assert bad and all(read_evidence(folder).rungs() == () for folder in bad)


def test_a_winner_that_does_not_win_again_is_not_chosen(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost, again=lambda config, sizes: 2.0 if config != DEFAULT else 1.9)
    result = run(cache, gpu)
    assert not result.chosen and "measured in turn" in result.why and entries(cache) == []


def test_a_winner_that_is_slower_at_one_shape_is_not_chosen(cache):
    def again(config, sizes):
        if config == DEFAULT:
            return 1.0
        return 0.5 if sizes["T"] == 1 else 1.02

    gpu = FakeGpu(FakeBuilder(cache), cost, again=again)
    result = run(cache, gpu)
    assert result.speedup > 1 and not result.chosen and "1.020× the time at worst" in result.why


def test_nothing_better_leaves_the_default(cache):
    gpu = FakeGpu(FakeBuilder(cache), lambda config, sizes: 1.0 if config == DEFAULT else 2.0)
    result = run(cache, gpu, configurations=6)
    assert not result.chosen and result.best["config"] == DEFAULT and entries(cache) == []
    assert not any(request.compare for request in gpu.requests)


def test_a_compile_failure_costs_only_itself(cache):
    gpu = FakeGpu(FakeBuilder(cache, broken=lambda config: config[NAME] == GOAL[NAME]), cost)
    result = run(cache, gpu)
    assert any("compile: ptxas" in each["why"] for each in result.failed)
    assert result.tried > len(result.failed) and result.best["config"][NAME] != GOAL[NAME]


def test_a_configuration_with_findings_in_the_emulator_never_reaches_the_gpu(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)

    def preflight(folder):
        return ["race at line 7"] if gpu.builder.plans[str(folder)].config[NAME] == GOAL[NAME] else []

    result = sweep(TARGET, settings(), cache=cache, builder=gpu.builder, measure=gpu, preflight=preflight)
    assert result.failed and {each["why"] for each in result.failed} == {"emulator: race at line 7"}
    bad = {folder for folder, plan in gpu.builder.plans.items() if plan.config[NAME] == GOAL[NAME]}
    assert bad and not bad & {folder for request in gpu.requests for folder in request.artifacts}
    (check,) = read_evidence(Path(next(iter(bad)))).checks
    assert check.rung == "emulator" and not check.ok and check.detail["findings"] == ["race at line 7"]
    assert result.best["config"][NAME] != GOAL[NAME]


def test_a_default_with_findings_in_the_emulator_is_an_error(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    with pytest.raises(CheckFailed, match=r"the default of rms_norm on sm_90a fails.*emulator: race"):
        sweep(TARGET, settings(), cache=cache, builder=gpu.builder, measure=gpu, preflight=lambda folder: ["race"])
    assert gpu.requests == []


def test_a_wrong_default_is_an_error(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost, wrong=lambda config: config == DEFAULT)
    with pytest.raises(CheckFailed, match="the default of rms_norm on sm_90a fails"):
        run(cache, gpu)


def test_an_interrupt_loses_nothing(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    gpu.interrupt_after = 3
    result = run(cache, gpu)
    assert result.interrupted and not result.chosen and 0 < result.tried < 30
    already = {json.dumps(config) for config in gpu.measured()}
    next_gpu = FakeGpu(FakeBuilder(cache), cost)
    finished = run(cache, next_gpu)
    assert finished.tried == 30 and finished.chosen  # the budget is the study's
    assert not already & {json.dumps(config) for config in next_gpu.measured()}
    again = FakeGpu(FakeBuilder(cache), cost)
    assert run(cache, again).tried == 30 and again.measured() == []


def test_refused_configurations_never_reach_the_builder(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    run(cache, gpu)
    fitting = {json.dumps(plan.config) for plan in PLANS}
    assert {json.dumps(plan.config) for plan in gpu.builder.built} <= fitting


def test_the_budget_may_be_a_time(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    spent = sweep(
        TARGET,
        Settings(GPU, SIZES, Budget(seconds=1e-9), batch=4),
        cache=cache,
        builder=gpu.builder,
        measure=gpu,
    )
    assert spent.tried == 0


def test_patience_ends_a_sweep(cache):
    gpu = FakeGpu(FakeBuilder(cache), lambda config, sizes: 1.0 if config == DEFAULT else 2.0)
    patient = Settings(GPU, SIZES, Budget(configurations=60, patience=8), sampler="random", batch=4)
    result = sweep(TARGET, patient, cache=cache, builder=gpu.builder, measure=gpu)
    assert result.tried <= 12 and "8 configurations brought nothing better" in result.ended


def test_an_exhausted_space_ends_a_sweep(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    result = run(cache, gpu, configurations=10_000, sampler="grid")
    assert result.tried == len(PLANS) and "every configuration" in result.ended
    assert result.best["config"] == GOAL


def test_slow_configurations_get_few_rounds_and_never_win(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    result = run(cache, gpu, rounds=15)
    assert 0 < result.slow < result.tried
    for request in gpu.requests[1:-1]:
        assert request.rungs == (5, 15) and request.beside[0] == gpu.requests[0].artifacts[0]
    assert gpu.requests[0].rungs == (15,)


FITTING = [plan.config for plan in PLANS[1:]]
EARLY, *_, LATE = (config for config in TARGET.space().in_order() if config in FITTING)


def near(config, sizes) -> float:
    """LATE, which a grid tries last, is the fastest, and EARLY the next."""
    return {json.dumps(LATE): 0.90, json.dumps(EARLY): 0.92}.get(json.dumps(config), 1.0) * sizes["T"] ** 0.5


def test_a_gpu_that_gets_slower_does_not_decide_who_wins(cache):
    """Each batch finds it 3 % slower, and the run that goes on after an interrupt 30 %: by their times EARLY wins."""
    gpu = FakeGpu(FakeBuilder(cache), near, drift=lambda request: 1.03**request)
    gpu.interrupt_after = 3
    assert run(cache, gpu, configurations=len(PLANS), sampler="grid").interrupted
    later = FakeGpu(FakeBuilder(cache), near, drift=lambda request: 1.3)
    result = run(cache, later, configurations=len(PLANS), sampler="grid")
    assert result.chosen and result.best["config"] == LATE
    assert result.best["us"] == pytest.approx(0.90 * result.default["us"])
    measured = read_evidence(Path(later.requests[-1].artifacts[1])).measurements[0]
    assert measured["median_us"] == pytest.approx(1.3 * 0.90) and measured["beside"]["ratio"] == pytest.approx(0.90)
    (early,) = (Path(name) for name, plan in gpu.builder.plans.items() if plan.config == EARLY)
    assert read_evidence(early).measurements[0]["median_us"] < measured["median_us"]


def test_the_best_so_far_takes_turns_with_the_next_until_it_faults(cache):
    gpu = FakeGpu(FakeBuilder(cache), near)

    def beside(request) -> list[dict]:
        return [gpu.builder.plans[folder].config for folder in request.beside]

    result = run(cache, gpu, configurations=len(PLANS), sampler="grid")
    first, *batches, last = gpu.requests
    assert first.beside == last.beside == () and result.best["config"] == LATE
    assert beside(batches[0]) == [DEFAULT] and all(beside(each) == [DEFAULT, EARLY] for each in batches[1:])
    assert batches[0].default_us == tuple(near(DEFAULT, sizes) for sizes in SIZES)

    def faulting(request, *, limit_s, progress=lambda outcome: None):
        for folder in request.beside[1:]:
            progress(Outcome(folder, error="AcceleratorError: an illegal memory access was encountered"))
        return gpu(request, limit_s=limit_s, progress=progress)

    gpu.requests.clear()
    other = Settings(GPU, ({"T": 9},), Budget(configurations=len(PLANS)), sampler="grid", batch=4)
    sweep(TARGET, other, cache=cache, builder=gpu.builder, measure=faulting)
    assert [beside(each) for each in gpu.requests[1:4]] == [[DEFAULT], [DEFAULT, EARLY], [DEFAULT]]


def test_equal_times_resolve_to_the_configuration_nearest_to_the_default(cache):
    """All but the default are equally fast within their noise: two sweeps that see them in another order agree, the one
    on a GPU that gets slower from batch to batch, the other on one that gets faster."""
    results = []
    for seed, drift in ((1, 1.03), (2, 0.97)):
        gpu = FakeGpu(
            FakeBuilder(cache),
            lambda config, sizes: 2.0 if config == DEFAULT else 1.0 + 0.004 * (sum(config.values()) % 64 == 0),
            width=0.02,
            drift=lambda request, drift=drift: drift**request,
        )
        budget = Budget(configurations=len(PLANS))
        whole = Settings(GPU, SIZES, budget, sampler="random", batch=8, seed=seed, rounds=5)
        results.append(sweep(TARGET, whole, cache=cache, builder=gpu.builder, measure=gpu).best["config"])
        (cache.root / "studies" / "rms_norm.sm_90a.journal").unlink()
    assert results[0] == results[1]
    assert sum(results[0][name] != DEFAULT[name] for name in DEFAULT) == 1


def test_best_entries_of_neighbours_are_tried_early(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    assert run(cache, gpu, configurations=len(PLANS), sampler="grid").chosen
    near = Target("rms_norm", "sm_90a", dims={"d": 1024}, pinned={"opt_level": 3})
    seeds = neighbours(cache, near)
    assert seeds == [GOAL]
    gpu = FakeGpu(FakeBuilder(cache), cost)
    sweep(near, settings(4), cache=cache, builder=gpu.builder, measure=gpu, seeds=seeds)
    assert GOAL in gpu.measured()[:3]


def test_geometric_mean():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
