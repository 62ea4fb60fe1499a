"""Tuning a whole model: in the order of predicted share, passing over what is served, going on after an interrupt."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dsv4.generator.cli import run as run_cli
from dsv4.tuner import cli, question, tune_model
from dsv4.tuner.budget import Budget
from dsv4.tuner.coverage import Asked
from dsv4.tuner.lanes import Lane
from dsv4.tuner.model_calls import StepCalls
from dsv4.tuner.model_jobs import model_jobs
from dsv4.tuner.question import Settings
from dsv4.tuner.tune_model import build_defaults, without_kernel
from dsv4.tuner.worker import DefaultFailed, WorkerError
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu


def rms(d: int, rows: int, times: int) -> Asked:
    return Asked(op="rms_norm", sizes={"T": rows, "d": d}, variant={"pdl": False}, times=times)


STEPS = [
    StepCalls("decode", 1, 1, (rms(512, 1, 3), rms(4096, 1, 30), Asked(op="mystery", sizes={}, variant={}, times=2))),
    StepCalls("prefill", 2048, 1, (rms(512, 2048, 3), rms(4096, 2048, 30))),
]


@pytest.fixture(autouse=True)
def no_seeds(monkeypatch):
    monkeypatch.setattr(tune_model, "starts", lambda *arguments: {})


@contextmanager
def quietly(title, budget):
    yield (lambda text: None), (lambda standing: None)


def cost(config, sizes) -> float:
    """Faster the fewer threads a row has, so that the default never wins."""
    return float(config["threads_per_row"]) * (1 + sizes["T"])


def jobs_on(cache):
    jobs = model_jobs(STEPS, "sm_90a")
    for job in jobs:
        job.look(cache, GPU)
    return jobs


def run(cache, gpu: FakeGpu, *, jobs=None, seconds: float | None = None, each: int = 6):
    settings = Settings(GPU, (), Budget(configurations=each, seconds=seconds), sampler="random", batch=3)
    jobs = jobs_on(cache) if jobs is None else jobs
    return tune_model.tune_model(jobs, settings, cache=cache, lanes=[Lane(gpu.builder, gpu)], watching=quietly)


def test_the_largest_share_is_tuned_first_and_serves_every_call(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    jobs = jobs_on(cache)
    assert [(job.op, job.dims) for job in jobs] == [
        ("rms_norm", {"d": 4096}),
        ("rms_norm", {"d": 512}),
        ("mystery", {}),
    ]
    assert [job.served for job in jobs] == ["missing", "missing", "no kernel is made"]
    turns = run(cache, gpu)
    assert [plan.dims["d"] for plan in gpu.builder.built] == sorted(
        (plan.dims["d"] for plan in gpu.builder.built), reverse=True
    )
    assert turns[0].result.chosen and turns[1].result.chosen and turns[2].told == "no kernel is made"
    assert [len(turn.result.winners) for turn in turns[:2]] == [2, 2]  # a winner for decoding, one for prefill
    again = jobs_on(cache)
    assert [job.served for job in again] == ["tuned", "tuned", "no kernel is made"]
    idle = FakeGpu(FakeBuilder(cache), cost)
    turns = run(cache, idle)
    assert not idle.requests and [turn.told for turn in turns[:2]] == ["measured entries serve every call"] * 2


def test_after_an_interrupt_the_same_command_goes_on(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    gpu.interrupt_after = 2
    turns = run(cache, gpu)
    assert turns[0].result.interrupted and turns[1].told == "not reached: interrupted before"
    measured = len(gpu.measured())
    gpu.interrupt_after = None
    turns = run(cache, gpu)
    assert turns[0].result.chosen and turns[1].result.chosen and turns[0].result.tried == 6
    configs = [config for config in gpu.measured()[:] if config]
    assert measured > 0 and len(configs) == 12  # six of each kernel, none of them twice


def test_an_interrupt_while_winners_are_measured_again_loses_no_turn(cache):
    class Impatient(FakeGpu):
        def __call__(self, request, **more):
            if request.compare and any("d512" in self.builder.plans[name].name for name in request.artifacts):
                raise KeyboardInterrupt
            return super().__call__(request, **more)

    turns = run(cache, Impatient(FakeBuilder(cache), cost))
    assert turns[0].result is not None and turns[0].result.chosen and not turns[0].interrupted
    assert turns[1].interrupted and "the same command goes on" in turns[1].told
    turns = run(cache, FakeGpu(FakeBuilder(cache), cost))
    assert turns[1].result is not None and turns[1].result.chosen and turns[1].result.tried == 6


def test_a_wrong_default_is_told_and_the_others_go_on(cache):
    builder = FakeBuilder(cache)
    gpu = FakeGpu(builder, cost)
    right = gpu.wrong
    gpu.wrong = lambda config: config == jobs[0].target.default().config or right(config)
    jobs = jobs_on(cache)
    turns = run(cache, gpu, jobs=jobs)
    assert turns[0].failed and "y is off" in turns[0].told and turns[0].result is None
    assert turns[1].result is not None and turns[1].result.chosen


def test_a_default_that_faults_later_is_told_and_the_others_go_on(cache):
    class Faults(FakeGpu):
        def __call__(self, request, **more):
            if request.beside and "d4096" in self.builder.plans[request.beside[0]].name:
                raise DefaultFailed("the default failed while others took turns with it: illegal access")
            return super().__call__(request, **more)

    turns = run(cache, Faults(FakeBuilder(cache), cost))
    assert turns[0].failed and "illegal access" in turns[0].told
    assert turns[1].result is not None and turns[1].result.chosen


def test_without_a_worker_the_rest_is_not_reached_and_what_was_found_is_told(cache):
    class Gone(FakeGpu):
        def __call__(self, request, **more):
            if any("d512" in self.builder.plans[name].name for name in request.artifacts):
                raise WorkerError("the measuring worker did not get ready: no CUDA device")
            return super().__call__(request, **more)

    gpu = Gone(FakeBuilder(cache), cost)
    turns = run(cache, gpu, jobs=[*jobs_on(cache)[:2], *jobs_on(cache)[:1]])
    assert turns[0].result is not None and turns[0].result.chosen
    assert turns[1].failed and "no CUDA device" in turns[1].told
    assert turns[2].told == "not reached: no worker could be had before"


def test_time_is_shared_out_by_share_and_ends_the_run(cache, monkeypatch):
    seen = []
    real = tune_model.sweep

    def watched(target, settings, **more):
        seen.append(settings.budget.seconds)
        return real(target, settings, **more)

    monkeypatch.setattr(tune_model, "sweep", watched)
    run(cache, FakeGpu(FakeBuilder(cache), cost), seconds=1000.0)
    jobs = jobs_on(cache)
    part = jobs[0].share / (jobs[0].share + jobs[1].share)
    assert seen[0] == pytest.approx(1000 * part, rel=0.01) and seen[1] == pytest.approx(1000, rel=0.05)
    (turn, *_) = run(cache, FakeGpu(FakeBuilder(cache), cost), jobs=model_jobs(STEPS, "sm_90a"), seconds=1e-9)
    assert turn.told == "the budget was spent before"


def test_what_has_no_kernel_is_built_first(cache):
    builder = FakeBuilder(cache)
    jobs = without_kernel(jobs_on(cache))
    build_defaults(jobs, builder, lambda one: None)
    assert [plan.dims for plan in builder.built] == [{"d": 4096}, {"d": 512}] and builder.built[0].is_default
    cache.refresh()
    assert [job.served for job in jobs_on(cache)] == ["default", "default", "no kernel is made"]
    assert without_kernel(jobs_on(cache)) == []


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run_cli(cli.app, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


TINY = ("--model", "tiny", "--arch", "sm_90a", "--batch", "2", "--context", "512", "--chunk", "128")


def test_the_whole_way_with_made_up_times(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(question, "SURVEYED_MAX", 20)
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "cache"))
    code, out, _ = call(capsys, "model", *TINY, "--plan", "--json")
    plan = json.loads(out)
    assert code == 0 and [step["name"] for step in plan["steps"]] == ["decode 2 × 1 at 512", "prefill 128 at 512"]
    assert plan["shares"] == "predicted"
    code, out, _ = call(capsys, "model", *TINY, "--measure", "fake", "--each", "2", "--json")
    answer = json.loads(out)
    assert code == 0
    for kernel, planned in zip(answer["kernels"], plan["kernels"], strict=True):
        assert (kernel["op"], kernel["dims"], kernel["share"]) == (planned["op"], planned["dims"], planned["share"])
        assert (kernel["result"] is None) == (kernel["obstacle"] is not None)
        assert kernel["result"] is None or (kernel["result"]["tried"] == 2 and not kernel["result"]["chosen"])
    swept = [kernel for kernel in answer["kernels"] if kernel["result"]]
    assert len(swept) > 15 and not (tmp_path / "cache" / "tuned").exists()
    code, out, _ = call(capsys, "coverage", *TINY, "--json")
    counts = json.loads(out)["counts"]
    assert code == 0 and counts["missing"] > 30 and counts["no kernel is made"] > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_with_nothing_to_measure_on_it_says_so_in_one_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "cache"))
    code, out, err = call(capsys, "model", *TINY)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "model measures on the GPU" in err and "'dsv4-tune model --plan' works without" in err
    for more, words in (
        (("--budget", "40"), "--budget: found '40'; valid: a time"),
        (("--device", "x"), "--device: found it without --plan"),
        (("--measure", "guess"), "valid: gpu, fake"),
    ):
        code, _, err = call(capsys, "model", *TINY, *more)
        assert code == 2 and words in err
    code, _, err = call(capsys, "coverage", "step.json", *TINY)
    assert code == 2 and "found both of CALLS and --model" in err
