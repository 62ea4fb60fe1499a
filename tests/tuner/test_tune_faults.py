"""Planted faults: what hangs, is wrong, is slow, or dies; a disk that is full, a cache that cannot be written, two
sweeps on one cache. Each costs itself only, and none leads to a winner that is not one."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from dsv4.generator.build import evidence
from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.console import CheckFailed, UsageError
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner import question, storage
from dsv4.tuner import sweep as sweep_module
from dsv4.tuner.budget import Budget
from dsv4.tuner.gpu import exclusively
from dsv4.tuner.question import Settings
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target, ranked
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512}, pinned={"opt_level": 3, "rows_in_flight": 1})
SIZES = ({"T": 1}, {"T": 300})
DEFAULT = TARGET.default().config
PLANS = list(ranked(TARGET.space(), TARGET.default()))
BAD = PLANS[len(PLANS) // 2].config


def cost(config, sizes) -> float:
    """BAD is by far the fastest, the default is not the slowest."""
    if config == BAD:
        return 0.1
    return sizes["T"] ** 0.5 * (1.0 if config == DEFAULT else 0.9 + PLANS_BY_KEY[canonical_json(config)] / 100)


PLANS_BY_KEY = {canonical_json(plan.config): place for place, plan in enumerate(PLANS)}


def run(cache, gpu: FakeGpu, configurations: int = 10_000, **more):
    settings = Settings(GPU, SIZES, Budget(configurations=configurations), sampler="grid", rounds=15, **more)
    return sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu)


def tuned(cache) -> list:
    path = cache.tuned_path("rms_norm", "sm_90a")
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"hangs": lambda config: config == BAD}, "no answer within 60 s: killed"),
        ({"wrong": lambda config: config == BAD}, "T=7: y is off"),
    ],
)
def test_what_hangs_or_is_wrong_never_wins_and_is_quarantined_by_its_content(cache, fault, words):
    gpu = FakeGpu(FakeBuilder(cache), cost, **fault)
    result = run(cache, gpu)
    assert result.failed == [{"config": BAD, "why": words}] and result.tried == len(PLANS)
    assert result.chosen and result.best["config"] != BAD
    (entry,) = tuned(cache)
    assert entry["proof"]["failed"] == {words: 1} and entry["config"] != BAD
    folder = next(Path(name) for name, plan in gpu.builder.plans.items() if plan.config == BAD)
    check = read_evidence(folder).checks[-1]
    assert check.rung == "gpu" and not check.ok and check.detail["findings"] == [words]

    # Another study (other shapes), in which the kernel would behave: it is not run again, unless that is asked for.
    other = Settings(GPU, ({"T": 9},), Budget(configurations=10_000), sampler="grid")
    well = FakeGpu(FakeBuilder(cache), cost)
    again = sweep(TARGET, other, cache=cache, builder=well.builder, measure=well)
    assert BAD not in well.measured()
    assert again.failed[0]["why"].startswith("quarantined since ") and again.failed[0]["why"].endswith(words)
    asked = Settings(GPU, ({"T": 8},), Budget(configurations=10_000), sampler="grid", retry_quarantined=True)
    sweep(TARGET, asked, cache=cache, builder=well.builder, measure=well)
    assert BAD in well.measured()


def test_what_was_fast_by_accident_is_not_kept(cache):
    """Right but slow: in the sweep it looked fast, measured in turn with the default it is not."""
    gpu = FakeGpu(FakeBuilder(cache), cost, again=lambda config, sizes: 1.02 if config == BAD else 1.0)
    result = run(cache, gpu)
    assert result.best["config"] == BAD and not result.chosen and tuned(cache) == []
    assert "0.980× as fast" in result.why


def test_a_failure_at_the_last_comparison_keeps_nothing_and_is_remembered(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)

    def measure(request, *, limit_s, progress=lambda outcome: None):
        if not request.compare:
            return gpu(request, limit_s=limit_s, progress=progress)
        (outcome,) = gpu(request, limit_s=limit_s)
        outcome.error = "AcceleratorError: an illegal memory access was encountered"
        progress(outcome)
        return [outcome]

    settings = Settings(GPU, SIZES, Budget(configurations=10_000), sampler="grid")
    result = sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=measure)
    assert not result.chosen and tuned(cache) == [] and "illegal memory access" in result.why
    checked = read_evidence(cache.folder("rms_norm", "sm_90a", result.best["key"])).checks[-1]
    assert not checked.ok and "illegal memory access" in checked.detail["findings"][0]


def full(path: object) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_disk_that_fills_up_at_the_study_ends_in_one_line_and_the_sweep_goes_on_later(cache, monkeypatch):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    real, writes = storage.JournalFileBackend.append_logs, iter(range(1000))

    def append(self, logs):
        if next(writes) > 20:
            raise full(self._file_path)
        real(self, logs)

    monkeypatch.setattr(storage.JournalFileBackend, "append_logs", append)
    with pytest.raises(CheckFailed, match=r"No space left on device \(.*journal\): what was measured is kept"):
        run(cache, gpu)
    monkeypatch.undo()
    before = [canonical_json(config) for config in gpu.measured()]
    assert before and tuned(cache) == []
    # Claims of this very process are not given up by itself; one that starts later finds them dead.
    monkeypatch.setattr(sweep_module.Study, "recover", recover_own)
    result = run(cache, FakeGpu(FakeBuilder(cache), cost))
    assert result.tried == len(PLANS) and result.chosen


def recover_own(self) -> list:
    """As a later process sees it: every claim that this worker does not hold is a dead one's."""
    self.attendance.is_dead = lambda record: True
    return REAL_RECOVER(self)


REAL_RECOVER = sweep_module.Study.recover


def test_a_disk_that_fills_up_at_the_evidence_ends_in_one_line_and_leaves_it_whole(cache, monkeypatch):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    real, writes = evidence.write_evidence, iter(range(1000))

    def write(artifact, found):
        if next(writes) > 12:
            (artifact / f".evidence.json.{os.getpid()}").write_text("{half")
            raise full(artifact)
        real(artifact, found)

    monkeypatch.setattr(evidence, "write_evidence", write)
    with pytest.raises(CheckFailed, match="No space left on device"):
        run(cache, gpu)
    for name in gpu.builder.plans:
        assert read_evidence(Path(name)).rungs() in ((), ("gpu",))
    monkeypatch.undo()
    assert run(cache, FakeGpu(FakeBuilder(cache), cost)).tried == len(PLANS)


def test_a_disk_that_is_full_when_the_winner_is_kept_leaves_the_old_one(cache, monkeypatch):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    assert run(cache, gpu).chosen
    before = cache.tuned_path("rms_norm", "sm_90a").read_bytes()

    def write(path, content, *, mode):
        raise full(path)

    monkeypatch.setattr("dsv4.runtime.cache.write_atomically", write)
    with pytest.raises(CheckFailed, match="No space left on device"):
        run(cache, FakeGpu(FakeBuilder(cache), cost))
    assert cache.tuned_path("rms_norm", "sm_90a").read_bytes() == before


def test_a_database_that_goes_away_ends_the_sweep_in_one_line(cache, tmp_path, monkeypatch):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    opened = storage.open_storage(f"sqlite:///{tmp_path}/x.db")
    settings = Settings(GPU, SIZES, Budget(configurations=10_000), sampler="grid", batch=4)
    real, calls = opened.create_new_trial, iter(range(1000))

    def create(*arguments, **options):
        if next(calls) == 6:
            (tmp_path / "x.db").unlink()
            (tmp_path / "x.db").mkdir()  # from now on nothing can be opened there
            opened._backend.engine.dispose()
        return real(*arguments, **options)

    monkeypatch.setattr(opened, "create_new_trial", create)
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda seconds: None)
    with pytest.raises(CheckFailed) as caught:
        sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu, storage=opened)
    message = str(caught.value)
    assert "the study's storage failed (unable to open database file" in message and "\n" not in message
    assert tuned(cache) == []


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_measured(cache, monkeypatch):
    gpu = FakeGpu(FakeBuilder(cache), cost)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(cache.root))

    monkeypatch.setattr(question.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UsageError, match="Read-only file system; valid: a cache that can be written"):
        run(cache, gpu)
    assert gpu.requests == [] and gpu.builder.built == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"tuned_schema": 9}]', "tuned_schema: found 9; valid: 1"),
        ("{}", "found dict; valid: a list of tuned entries"),
        ("[{", "found no readable JSON"),
    ],
)
def test_entries_of_another_version_are_said_before_anything_is_measured(cache, content, words):
    path = cache.tuned_path(TARGET.op, TARGET.arch)
    path.parent.mkdir(mode=0o700)
    path.write_text(content)
    path.chmod(0o600)
    gpu = FakeGpu(FakeBuilder(cache), cost)
    with pytest.raises(UsageError, match=words):
        run(cache, gpu)
    assert gpu.requests == [] and gpu.builder.built == [] and path.read_text() == content


def test_two_sweeps_on_one_cache_share_the_study_and_keep_one_winner(cache):
    gpus = [FakeGpu(FakeBuilder(cache), cost) for _ in range(2)]
    results = []
    threads = [threading.Thread(target=lambda gpu=gpu: results.append(run(cache, gpu, batch=2))) for gpu in gpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and any(result.chosen for result in results)
    measured = [canonical_json(config) for gpu in gpus for config in gpu.measured() if config != DEFAULT]
    assert len(measured) == len(set(measured)) == len(PLANS) - 1
    assert len(tuned(cache)) == 1 and tuned(cache)[0]["config"] == BAD


def test_two_sweeps_of_different_questions_on_one_cache_keep_both_winners(cache):
    gpus = [FakeGpu(FakeBuilder(cache), cost) for _ in range(2)]
    buckets = ({"T": (1, 400)}, {"T": (1, 500)})
    sizes = (SIZES, (*SIZES, {"T": 400}))

    def go(number: int) -> None:
        settings = Settings(GPU, sizes[number], Budget(configurations=10_000), sampler="grid", bucket=buckets[number])
        sweep(TARGET, settings, cache=cache, builder=gpus[number].builder, measure=gpus[number])

    threads = [threading.Thread(target=go, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry["question"]["bucket"]["T"] for entry in tuned(cache)) == [[1, 400], [1, 500]]


def test_two_sweeps_on_one_gpu_measure_in_turn(tmp_path):
    inside, seen = [], []

    def measure(name, *, limit_s):
        inside.append(name)
        seen.append(len(inside))
        time.sleep(0.02)
        inside.remove(name)
        return []

    def go(name: str) -> None:
        for _ in range(4):
            exclusively(measure, tmp_path / "gpu.lock")(name, limit_s=1.0)

    threads = [threading.Thread(target=go, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8
