"""The sweep keeps a winner only if it is right and faster, records what it learns, and goes on after an interrupt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.console import CheckFailed, UsageError
from dsv4.tuner.sweep import Budget, Settings, geometric_mean, sweep
from dsv4.tuner.target import Target
from tests.tuner.tuner_fakes import FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 3})
SIZES = ({"T": 1}, {"T": 300})
DEFAULT = TARGET.default().config
GOAL = TARGET.configurations()[0][-1].config  # the one that differs most from the default
NAME = next(name for name in GOAL if GOAL[name] != DEFAULT[name])


def cost(config, sizes) -> float:
    """The more a configuration agrees with GOAL, the faster."""
    return sizes["T"] ** 0.5 * (1 + sum(config[name] != GOAL[name] for name in GOAL) / 10)


def settings(configurations: int = 30, **more) -> Settings:
    return Settings("Fake GPU", SIZES, Budget(configurations=configurations), batch=4, **more)


def choices(cache) -> list:
    path = cache.choices_path("rms_norm", "sm_90a")
    return json.loads(path.read_text()) if path.exists() else []


def run(cache, gpu: FakeGpu, *, configurations: int = 30, **more):
    return sweep(TARGET, settings(configurations, **more), cache=cache, builder=gpu.builder, measure=gpu)


def test_the_winner_is_measured_again_and_chosen(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    result = run(cache, gpu, bucket={"T": (1, 300)})
    assert result.chosen and result.speedup > 1 and result.tried == 30 and not result.failed
    assert result.default["config"] == DEFAULT
    assert cost(result.best["config"], {"T": 1}) < cost(DEFAULT, {"T": 1})
    last = gpu.requests[-1]
    assert last.compare and not last.check and len(last.artifacts) == 2
    (choice,) = choices(cache)
    assert choice["device"] == "Fake GPU" and choice["dims"] == {"d": 1536} and choice["bucket"] == {"T": [1, 300]}
    assert choice["key"] == result.best["key"] == Path(last.artifacts[1]).name


def test_every_candidate_is_checked_and_evidence_is_written(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    run(cache, gpu, configurations=5)
    for request in gpu.requests:
        assert request.check or request.compare
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
    assert not result.chosen and "measured in turn" in result.why and choices(cache) == []


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
    assert not result.chosen and result.best["config"] == DEFAULT and choices(cache) == []
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
    already = {json.dumps(plan.config) for plan in gpu.builder.built[: result.tried]}
    next_gpu = FakeGpu(FakeBuilder(cache), cost)
    finished = run(cache, next_gpu)
    assert finished.tried == result.tried + 30 and finished.chosen
    measured = [config for request in next_gpu.requests[1:-1] for config in
                (json.dumps(next_gpu.builder.plans[a].config) for a in request.artifacts)]  # fmt: skip
    assert not already & set(measured)


def test_refused_configurations_never_reach_the_builder(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    run(cache, gpu)
    fitting = {json.dumps(plan.config) for plan in TARGET.configurations()[0]}
    assert {json.dumps(plan.config) for plan in gpu.builder.built} <= fitting


def test_the_budget_may_be_a_time(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    spent = sweep(
        TARGET,
        Settings("Fake GPU", SIZES, Budget(seconds=1e-9), batch=4),
        cache=cache,
        builder=gpu.builder,
        measure=gpu,
    )
    assert spent.tried == 0


@pytest.mark.parametrize(
    ("text", "budget"),
    [("40", Budget(configurations=40)), ("90s", Budget(seconds=90)), ("1.5h", Budget(seconds=5400))],
)
def test_budgets(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "0", "-3", "10 m", "m", "0s", "ten"])
def test_what_is_no_budget_is_one_line(text):
    with pytest.raises(UsageError, match="--budget: found"):
        Budget.parse(text)


def test_geometric_mean():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
