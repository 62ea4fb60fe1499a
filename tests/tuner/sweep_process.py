"""A sweep with made-up times in a process of its own, to be killed. Started from a fork server that has everything
imported, so that a start costs milliseconds and kills meet the work, not the imports."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import fake
from dsv4.tuner.budget import Budget
from dsv4.tuner.builders import Ahead
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.question import Settings
from dsv4.tuner.storage import open_storage
from dsv4.tuner.study import Study, study_names
from dsv4.tuner.sweep import Result, sweep
from dsv4.tuner.target import Target, ranked

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512}, pinned={"opt_level": 3})
SIZES = ({"T": 64},)
MEASURING_S = 0.002
"""What one made-up measurement takes: kills have to fall into them, too."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.tuner.sweep_process", "alembic.command", "alembic.script", "psycopg"])


GATE_LIMIT_S = 200.0


@dataclass(frozen=True)
class Gate:
    """A place in the first measurement of claimed configurations: who comes there says so, and waits."""

    root: Path

    def began(self, pid: int | None) -> bool:
        return (self.root / f"began.{pid}").exists()

    def wait_for(self, processes: Sequence[BaseProcess]) -> None:
        """Until all of them stand at the gate."""
        deadline = time.monotonic() + GATE_LIMIT_S
        while not all(self.began(process.pid) for process in processes):
            assert time.monotonic() < deadline, "a worker has not begun to measure"
            assert all(process.is_alive() for process in processes), "a worker ended before it measured"
            time.sleep(0.01)

    def open(self) -> None:
        (self.root / "open").touch()

    def __call__(self) -> None:
        (self.root / f"began.{os.getpid()}").touch()
        deadline = time.monotonic() + GATE_LIMIT_S
        while not (self.root / "open").exists():
            assert time.monotonic() < deadline, "the gate was not opened"
            time.sleep(0.01)


class LoggedGpu(fake.FakeGpu):
    """Writes down each configuration that it begins."""

    def __init__(self, builder: fake.FakeBuilder, log: Path, gate: Gate | None = None) -> None:
        super().__init__(builder)
        self.log, self.gate = log, gate

    def __call__(self, request, *, limit_s, progress=lambda outcome: None):
        if not request.compare:
            with self.log.open("a") as stream:
                for folder in request.artifacts:
                    stream.write(canonical_json(self.builder.plans[folder].config) + "\n")
        if self.gate and request.beside:  # without them it is the default, which nobody claims
            self.gate()
        time.sleep(MEASURING_S * len(request.artifacts))
        return super().__call__(request, limit_s=limit_s, progress=progress)


def work(
    root: Path, where: str, seed: int, configurations: int | None = None, batch: int = 3, gated: bool = False
) -> Result:
    """One run of the sweep, to its end; ``gated``: it waits in its first trials until the test opens ``Gate``."""
    builder = fake.FakeBuilder()
    budget = Budget(configurations=configurations)
    settings = Settings(
        fake.DEVICE, SIZES, budget, sampler="random", batch=batch, seed=seed, rounds=5, lost_max=1_000_000
    )
    gpu = LoggedGpu(builder, root / "measured.log", Gate(root) if gated else None)
    return sweep(
        TARGET,
        settings,
        cache=KernelCache(root / "cache"),
        builder=Ahead(builder),
        measure=gpu,
        storage=open_storage(where),
    )


def start(root: Path, where: str, seed: int, **more: int) -> BaseProcess:
    """The same in a process of its own, which is running when this returns."""
    process = CONTEXT.Process(target=work, args=(root, where, seed), kwargs=more)
    process.start()
    return process


def kill(process: BaseProcess) -> bool:
    """Kill −9; whether it was still at work."""
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.kill(process.pid, 9)
    process.join()
    return alive


def open_study(where: str) -> Study:
    storage = open_storage(where)
    (name,) = study_names(storage)
    return Study(storage, name, Encoding(TARGET.space()))


def examine(root: Path, where: str, configurations: int | None = None) -> int:
    """Every configuration (of the space, or as many as the budget) is told exactly once, with its own time, and was
    measured. Returns how many were given up because their worker died."""
    study = open_study(where)
    tried = study.tried()
    space = {canonical_json(plan.config) for plan in ranked(TARGET.space(), TARGET.default())}
    counts = Counter(each.key for each in tried)
    assert max(counts.values()) == 1, "a configuration counts twice"
    assert set(counts) <= space
    assert len(counts) == (len(space) if configurations is None else configurations), "configurations were lost"
    assert len(study.taken()) == len(tried), "a trial is left running"
    measured = set((root / "measured.log").read_text().splitlines())
    assert set(counts) <= measured | {canonical_json(TARGET.default().config)}
    for each in tried:
        expected = fake.made_up_us(each.config, SIZES[0])
        assert each.score_us is not None and abs(each.score_us / expected - 1) < 5 * fake.NOISE
    return sum(bool(trial.user_attrs.get("lost")) for trial in study._every())
