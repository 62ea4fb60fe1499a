"""Compiling while something else is measured: really at the same time, in the same order each time, nothing lost."""

from __future__ import annotations

import json
import os
import threading
import time
from itertools import islice

import pytest

from dsv4.generator.console import CheckFailed
from dsv4.tuner.budget import Budget
from dsv4.tuner.builders import Ahead, Compiler, Prebuilt
from dsv4.tuner.commands.measuring import measuring
from dsv4.tuner.question import Settings
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 3, "rows_in_flight": 1})
SIZES = ({"T": 1}, {"T": 300})


def cost(config, sizes) -> float:
    return sizes["T"] ** 0.5 * (1 + config["threads_per_row"] / 256)


class SlowBuilder(FakeBuilder):
    """Takes ``seconds`` for each; ``begun`` counts the batches, ``fails_at`` is the one with which the disk is full."""

    def __init__(self, cache, seconds: float = 0.0, fails_at: int | None = None) -> None:
        super().__init__(cache)
        self.seconds, self.fails_at = seconds, fails_at
        self.begun = 0
        self.threads: list[str] = []
        self.changed = threading.Condition()

    def build(self, plans, progress):
        with self.changed:
            self.begun += 1
            self.threads.append(threading.current_thread().name)
            self.changed.notify_all()
        if self.begun == self.fails_at:
            raise OSError(28, "No space left on device", "/cache")
        found = []
        for plan in plans:
            time.sleep(self.seconds)
            found += super().build([plan], progress)
            progress(found[-1])
        return found

    def wait_for(self, batches: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.begun >= batches, timeout=20)


def run(cache, gpu, builder, configurations: int = 20, **more):
    settings = Settings(GPU, SIZES, Budget(configurations=configurations), **{"sampler": "tpe", "batch": 4, **more})
    return sweep(TARGET, settings, cache=cache, builder=Ahead(builder), measure=gpu)


def test_the_next_batch_is_being_compiled_while_one_is_measured(cache):
    """A batch's measurement ends only when the next batch's compilation has begun: without overlap that is never.

    Three builds come before: of the default for the study's name and for its measurement, and of the first batch.
    """
    builder = SlowBuilder(cache)
    gpu = FakeGpu(builder, cost)
    met: list[bool] = []

    def measure(request, *, limit_s, progress=lambda outcome: None):
        if request.beside and len(met) < 4:  # the fifth of five batches is the last
            met.append(builder.wait_for(4 + len(met)))
        return gpu(request, limit_s=limit_s, progress=progress)

    result = run(cache, measure, builder)
    assert result.tried == 20 and met == [True] * 4 and result.chosen
    assert builder.threads.count("compile") == 4


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_order_does_not_hang_on_which_of_the_two_is_slower(cache, sampler):
    orders = []
    for build_s, measure_s in ((0.0, 0.02), (0.01, 0.0)):
        gpu = FakeGpu(SlowBuilder(cache, build_s), cost)

        def measure(request, *, limit_s, progress=lambda outcome: None, gpu=gpu, seconds=measure_s):
            time.sleep(seconds)
            return gpu(request, limit_s=limit_s, progress=progress)

        assert run(cache, measure, gpu.builder, sampler=sampler).tried == 20
        orders.append(gpu.measured())
        (cache.root / "studies" / "rms_norm.sm_90a.journal").unlink()
    assert orders[0] == orders[1]


def test_an_interrupt_gives_back_what_was_compiled_ahead(cache):
    gpu = FakeGpu(SlowBuilder(cache, 0.01), cost)
    gpu.interrupt_after = 3
    stopped = run(cache, gpu, gpu.builder)
    assert stopped.interrupted and 0 < stopped.tried < 20
    assert not any(thread.name == "compile" for thread in threading.enumerate())
    already = {json.dumps(config) for config in gpu.measured()}
    again = FakeGpu(SlowBuilder(cache), cost)
    assert run(cache, again, again.builder).tried == 20
    assert not already & {json.dumps(config) for config in again.measured()}


def test_a_full_disk_in_the_background_ends_the_sweep_in_one_line_and_it_goes_on(cache):
    gpu = FakeGpu(SlowBuilder(cache, fails_at=5), cost)
    with pytest.raises(CheckFailed, match=r"No space left on device \(/cache\): what was measured is kept") as caught:
        run(cache, gpu, gpu.builder)
    assert "\n" not in str(caught.value)
    again = FakeGpu(FakeBuilder(cache), cost)
    assert run(cache, again, again.builder).tried == 20


def test_patience_ends_a_sweep_without_measuring_what_was_compiled_ahead(cache):
    gpu = FakeGpu(FakeBuilder(cache), lambda config, sizes: 1.0 if config == TARGET.default().config else 2.0)
    settings = Settings(GPU, SIZES, Budget(configurations=60, patience=8), sampler="random", batch=4)
    result = sweep(TARGET, settings, cache=cache, builder=Ahead(gpu.builder), measure=gpu)
    assert result.tried <= 12 and len(gpu.measured()) <= 13 < len(gpu.builder.plans) + 4
    assert "8 configurations brought nothing better" in result.ended


def test_a_builder_that_is_stopped_forgets_and_goes_on(cache):
    builder = SlowBuilder(cache, 0.02)
    ahead = Ahead(builder)
    plans = list(islice(ranked(TARGET.space(), TARGET.default()), 8))
    ahead.announce(plans[2:])
    assert [one.plan for one in ahead.build(plans[:2], lambda one: None)] == plans[:2]
    assert builder.wait_for(2)
    ahead.stop()
    assert len(builder.built) < len(plans)
    seen: list[str] = []
    built = ahead.build(plans, lambda one: seen.append(one.plan.name))
    assert [one.plan for one in built] == plans and len(seen) >= len(plans)


def test_on_a_gpu_the_next_batch_is_compiled_meanwhile_unless_that_would_be_timed(cache, monkeypatch):
    monkeypatch.setattr("dsv4.tuner.gpu.require_gpus", lambda plan, by, wanted: list(range(int(wanted))))
    monkeypatch.setattr("dsv4.tuner.gpu.gpu_lock", lambda root, index: root / "gpu.lock")
    monkeypatch.setattr("dsv4.runtime.identity.device_identity", lambda index: GPU)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def builder(**more):
        return measuring(
            "gpu", TARGET.default(), cache, **{"jobs": 0, "prebuilt": False, "by": "sweep", **more}
        ).builder

    ahead = builder()
    assert isinstance(ahead, Ahead) and ahead.builder.jobs == 7  # a core is left to the measuring process
    assert builder(gpus="3").builder.jobs == 5
    assert builder(jobs=3).builder.jobs == 3
    alone = builder(ahead=False)
    assert isinstance(alone, Compiler) and alone.jobs == 8
    assert isinstance(builder(prebuilt=True), Prebuilt)
