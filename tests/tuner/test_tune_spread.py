"""Several GPUs of one host, made up: the work is dealt out, a GPU that fails is left out, an interrupt ends all."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import cli, gpu, question
from dsv4.tuner.budget import Budget
from dsv4.tuner.protocol import Request
from dsv4.tuner.question import Settings
from dsv4.tuner.spread import Spread
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked
from dsv4.tuner.worker import DefaultFailed, Outcome, Stopped, WorkerError
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512}, pinned={"opt_level": 3})


class Recorded:
    """Answers at once, or when it is let; and writes down what it was asked."""

    def __init__(self, *, waits: bool = False, broken: bool = False) -> None:
        self.asked: list[Request] = []
        self.waits, self.broken = waits, broken
        self.began = threading.Event()

    def __call__(self, request, *, limit_s, progress=lambda outcome: None, is_stopped=lambda: False):
        self.asked.append(request)
        self.began.set()
        if self.broken:
            raise WorkerError("the device does not compute")
        while self.waits:
            if is_stopped():
                raise Stopped
            time.sleep(0.01)
        names = request.artifacts[1:] if request.compare else request.artifacts
        outcomes = [Outcome(name, device="Fake GPU") for name in names]
        for outcome in outcomes:
            progress(outcome)
        return outcomes


def request(*names: str, **more) -> Request:
    return Request(artifacts=names, sizes=({"T": 1},), beside=("default",), default_us=(1.0,), **more)


def test_a_batch_is_dealt_out_and_comes_back_in_its_order():
    gpus, seen = [Recorded(), Recorded()], []
    outcomes = Spread(gpus)(request("a", "b", "c", "d", "e"), limit_s=1.0, progress=lambda one: seen.append(one))
    assert [outcome.artifact for outcome in outcomes] == ["a", "b", "c", "d", "e"] and len(seen) == 5
    parts = sorted(each.artifacts for one in gpus for each in one.asked)
    assert parts == [("a", "c", "e"), ("b", "d")]
    assert all(each.beside == ("default",) for one in gpus for each in one.asked)


def test_one_artifact_and_a_comparison_go_to_one_gpu():
    gpus = [Recorded(), Recorded()]
    spread = Spread(gpus)
    assert [one.artifact for one in spread(request("a"), limit_s=1.0)] == ["a"]
    assert [one.artifact for one in spread(request("a", "b", compare=True), limit_s=1.0)] == ["b"]
    assert sum(len(one.asked) for one in gpus) == 2


def test_a_gpu_that_does_not_work_is_left_out_and_the_others_do_its_part():
    gpus, told = [Recorded(broken=True), Recorded()], []
    spread = Spread(gpus, told.append)
    outcomes = spread(request("a", "b", "c"), limit_s=1.0)
    assert [outcome.artifact for outcome in outcomes] == ["a", "b", "c"] and spread.width == 1
    assert len(told) == 1 and "number 0" in told[0] and "does not compute" in told[0]
    spread(request("d", "e"), limit_s=1.0)
    assert len(gpus[0].asked) == 1 and gpus[1].asked[-1].artifacts == ("d", "e")


def test_a_default_that_fails_is_no_fault_of_the_gpu():
    def fails(request, **more):
        raise DefaultFailed("the default failed while others took turns with it: x")

    spread = Spread([fails, fails])
    with pytest.raises(DefaultFailed):
        spread(request("a"), limit_s=1.0)
    assert spread.width == 2


def test_without_a_gpu_that_works_the_error_is_raised():
    with pytest.raises(WorkerError, match="does not compute"):
        Spread([Recorded(broken=True), Recorded(broken=True)])(request("a", "b"), limit_s=1.0)


def test_an_interrupt_stops_every_worker(monkeypatch):
    gpus = [Recorded(waits=True), Recorded(waits=True)]
    spread = Spread(gpus)
    join = threading.Thread.join

    def interrupted(thread, timeout=None):
        if all(one.began.is_set() for one in gpus) and timeout is not None and timeout < 1.0:
            raise KeyboardInterrupt
        return join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spread(request("a", "b"), limit_s=1.0)
    for one in gpus:
        one.waits = False
    assert len(spread(request("c", "d"), limit_s=1.0)) == 2  # it goes on afterwards


class Slower(FakeGpu):
    """A GPU of the same kind that is slower than its neighbour, with a width of its own."""

    def __call__(self, request, *, limit_s, progress=lambda outcome: None, is_stopped=lambda: False):
        return super().__call__(request, limit_s=limit_s, progress=progress)


def cost(config, sizes) -> float:
    return float(config["threads_per_row"]) * (1 + sizes["T"])


def settings(**more) -> Settings:
    return Settings(GPU, ({"T": 1}, {"T": 64}), Budget(), sampler="random", batch=6, **more)


def test_a_sweep_on_two_unequal_gpus_finds_what_one_finds(cache, tmp_path):
    builder = FakeBuilder(cache)
    alone = sweep(TARGET, settings(), cache=cache, builder=builder, measure=Slower(builder, cost))
    other = KernelCache(tmp_path / "other")
    builder = FakeBuilder(other)
    gpus = [Slower(builder, cost), Slower(builder, cost, drift=lambda request: 1.3)]
    both = sweep(TARGET, settings(), cache=other, builder=builder, measure=Spread(gpus))
    assert both.chosen and both.best["config"] == alone.best["config"] and both.tried == alone.tried
    assert min(len(one.measured()) for one in gpus) > alone.tried // 4
    space = {json.dumps(plan.config, sort_keys=True) for plan in ranked(TARGET.space(), TARGET.default())}
    measured = [json.dumps(each, sort_keys=True) for one in gpus for each in one.measured()]
    assert sorted(measured) == sorted(space)  # none left out, none twice


class InCompany(Slower):
    """Its comparisons end only when another GPU is at one, too."""

    others = threading.Barrier(2, timeout=20.0)

    def __call__(self, request, **more):
        if request.compare:
            self.others.wait()
        return super().__call__(request, **more)


def test_the_buckets_winners_are_compared_at_the_same_time(cache):
    builder = FakeBuilder(cache)
    gpus = [InCompany(builder, cost), InCompany(builder, cost)]
    two = replace(settings(), buckets=({"T": (0, 8)}, {"T": (9, None)}))
    result = sweep(TARGET, two, cache=cache, builder=builder, measure=Spread(gpus))
    assert [winner.chosen for winner in result.winners] == [True, True]


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run_cli(cli.app, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_on_the_command_line_with_made_up_times(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(question, "SURVEYED_MAX", 20)
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "c"))
    common = ("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=512", "--measure", "fake", "--budget", "12")
    code, out, _ = call(capsys, *common, "--gpus", "3", "--json")
    assert code == 0 and json.loads(out)["tried"] == 12
    for wrong in ("0", "-1", "two", "1.5"):
        code, out, err = call(capsys, *common, "--gpus", wrong)
        assert code == 2 and out == "" and f"--gpus: found '{wrong}'; valid: a number from 1, or all" in err


def test_as_many_as_there_are_and_of_one_kind(monkeypatch):
    names = ["H100", "H100", "H200"]
    monkeypatch.setattr(gpu, "require_gpu", lambda plan, by: 1)
    monkeypatch.setattr(gpu.torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda index: names[index])
    monkeypatch.setattr(gpu, "device_identity", lambda index: GPU.model_copy(update={"name": names[index]}))
    plan = TARGET.default()
    assert gpu.require_gpus(plan, "sweep", "1") == [1]
    assert gpu.require_gpus(plan, "sweep", "2") == [0, 1]
    with pytest.raises(UsageError, match=r"--gpus: found 4, this machine shows 3"):
        gpu.require_gpus(plan, "sweep", "4")
    with pytest.raises(UsageError, match=r"several kinds \(H100, H200\)"):
        gpu.require_gpus(plan, "sweep", "all")
