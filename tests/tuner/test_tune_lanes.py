"""Several kernels at the same time, a made-up GPU each: what one GPU finds, a GPU that fails, an interrupt."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

from dsv4.runtime.cache import KernelCache
from dsv4.tuner import tune_model
from dsv4.tuner.budget import Budget
from dsv4.tuner.coverage import Asked
from dsv4.tuner.lanes import Lane, at_once
from dsv4.tuner.model_calls import StepCalls
from dsv4.tuner.model_jobs import model_jobs
from dsv4.tuner.question import Settings
from dsv4.tuner.worker import Stopped, WorkerError
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu


def rms(d: int, rows: int) -> Asked:
    return Asked(op="rms_norm", sizes={"T": rows, "d": d}, variant={"pdl": False}, times=d // 512)


STEPS = [StepCalls(f"step of {rows}", rows, 1, tuple(rms(d, rows) for d in (512, 1024, 4096))) for rows in (1, 2048)]


@pytest.fixture(autouse=True)
def no_seeds(monkeypatch):
    monkeypatch.setattr(tune_model, "starts", lambda *arguments: {})


class Gpu(FakeGpu):
    """As ``worker.on`` is asked. At its first request it waits until all of ``meet`` are at theirs; with ``waits`` it
    never answers."""

    meet: threading.Barrier | None = None
    waits = False

    def __call__(self, request, *, limit_s, progress=lambda outcome: None, is_stopped=lambda: False):
        if self.meet is not None and not self.requests:
            self.meet.wait()
        while self.waits:
            if is_stopped():
                raise Stopped
            time.sleep(0.01)
        return super().__call__(request, limit_s=limit_s, progress=progress)

    def dims(self) -> set[int]:
        """The kernels that it had."""
        return {self.builder.plans[name].dims["d"] for request in self.requests for name in request.artifacts}


class Broken:
    def __call__(self, request, **more):
        raise WorkerError("the device does not compute")


def cost(config, sizes) -> float:
    return float(config["threads_per_row"]) * (1 + sizes["T"])


def run(cache, gpus, said=None, each=6):
    jobs = model_jobs(STEPS, "sm_90a")
    for job in jobs:
        job.look(cache, GPU)

    @contextmanager
    def watching(title, budget):
        yield (lambda text: said.append(text) if said is not None else None), (lambda standing: None)

    settings = Settings(GPU, (), Budget(configurations=each), sampler="random", batch=3)
    lanes = [Lane(getattr(gpu, "builder", None) or FakeBuilder(cache), gpu) for gpu in gpus]
    return tune_model.tune_model(jobs, settings, cache=cache, lanes=lanes, watching=watching)


def gpus_on(cache, count: int) -> list[Gpu]:
    builder, meet = FakeBuilder(cache), threading.Barrier(count, timeout=20.0)
    gpus = [Gpu(builder, cost) for _ in range(count)]
    for gpu in gpus:
        gpu.meet = meet
    return gpus


def test_two_gpus_have_a_kernel_each_and_find_what_one_finds(cache, tmp_path):
    alone = run(cache, gpus_on(cache, 1))
    other = KernelCache(tmp_path / "other")
    gpus, said = gpus_on(other, 2), []
    turns = run(other, gpus, said)  # the barrier breaks where they are not at work at the same time
    assert [turn.job.dims["d"] for turn in turns] == [turn.job.dims["d"] for turn in alone] == [4096, 1024, 512]
    for one, both in zip(alone, turns, strict=True):
        assert both.result is not None and both.result.tried == one.result.tried == 6
        assert all(winner.chosen for winner in both.result.winners)
        assert [each.best["config"] for each in both.result.winners] == [
            each.best["config"] for each in one.result.winners
        ]
    assert gpus[0].dims() and gpus[1].dims() and not gpus[0].dims() & gpus[1].dims()
    assert sum(len(gpu.measured()) for gpu in gpus) == 3 * 6
    for number in (1, 2, 3):  # a line says which kernel it speaks of
        assert sum(line.startswith(f"{number} rms_norm: ") for line in said) == 6


def test_a_gpu_that_fails_is_told_and_another_takes_its_kernel(cache):
    said = []
    (gpu,) = gpus_on(cache, 1)
    turns = run(cache, [Broken(), gpu], said)
    assert all(turn.result is not None and turn.result.tried == 6 for turn in turns)
    assert [line for line in said if "left out" in line] == [
        "a GPU is left out, the others go on: the device does not compute"
    ]


def test_a_kernel_comes_back_though_the_other_gpu_was_done(cache):
    class Late(Gpu):
        def __call__(self, request, **more):
            done.wait(20.0)
            raise WorkerError("the device does not compute")

    (gpu,) = gpus_on(cache, 1)
    done, leave = threading.Event(), tune_model._Run.work

    def work(run, lane):
        leave(run, lane)
        done.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_model._Run, "work", work)
        turns = run(cache, [Late(gpu.builder, cost), gpu])
    assert all(turn.result is not None and turn.result.tried == 6 for turn in turns)


def test_without_a_gpu_that_works_the_rest_is_not_reached(cache):
    turns = run(cache, [Broken(), Broken()])
    assert [turn.failed for turn in turns].count(True) == 1
    assert [turn.told for turn in turns].count("not reached: no worker could be had before") == 2


def test_an_interrupt_ends_every_gpu_and_the_same_command_goes_on(cache, monkeypatch):
    gpus = gpus_on(cache, 2)
    join, interrupted = threading.Thread.join, []

    def joined(thread, timeout=None):
        if thread.name == "lane" and not interrupted and all(len(gpu.requests) > 1 for gpu in gpus):
            for gpu in gpus:
                gpu.waits = True
            interrupted.append(True)
            raise KeyboardInterrupt
        return join(thread, timeout if timeout is None else 0.001)

    real = Gpu.__call__

    def slowly(gpu, request, **more):
        time.sleep(0.02)
        return real(gpu, request, **more)

    monkeypatch.setattr(threading.Thread, "join", joined)
    monkeypatch.setattr(Gpu, "__call__", slowly)
    turns = run(cache, gpus, each=30)
    assert [turn.interrupted for turn in turns] == [True, True, False]
    assert turns[2].told == "not reached: interrupted before"
    before = [turn.result.tried for turn in turns[:2] if turn.result is not None]
    for gpu in gpus:
        gpu.waits = False
    turns = run(cache, gpus, each=30)
    assert [turn.result.tried for turn in turns] == [30, 30, 30]
    assert sum(len(gpu.measured()) for gpu in gpus) < 90 + sum(before) + 12  # what was in the works counts once more


def test_what_one_thread_raises_stops_the_others():
    stopped, seen = threading.Event(), []

    def fails():
        raise RuntimeError("a mistake")

    def waits():
        seen.append(stopped.wait(20.0))

    with pytest.raises(RuntimeError, match="a mistake"):
        at_once([waits, fails], stopped)
    assert seen == [True]
