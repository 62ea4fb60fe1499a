"""A study that several workers share: claimed once, told once, given up when its worker dies."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest
from optuna.trial import TrialState

from dsv4.tuner.encoding import Encoding
from dsv4.tuner.lease import Attendance, Worker
from dsv4.tuner.storage import open_storage
from dsv4.tuner.study import Study, study_names
from dsv4.tuner.target import Target
from dsv4.tuner.tried import Tried

SPACE = Target("rms_norm", "sm_90a", dims={"d": 512}).space()
CONFIGS = list(islice(SPACE.in_order(), 12))


@pytest.fixture(params=["journal", "sqlite"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "x.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/x.db"


def open_study(where: str, **more) -> Study:
    return Study(open_storage(where), "study", Encoding(SPACE), **more)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def kill(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of ``study`` is one whose process is gone."""
    study.worker = Worker(study.worker.name, study.worker.place, dead_process(), study.worker.started)
    study._beat_once()


def test_outcomes_come_back_in_order(where):
    with open_study(where, about=lambda: {"op": "rms_norm"}).attended() as study:
        claims = [study.claim(config) for config in CONFIGS[:3]]
        assert study.tell(claims[1], Tried(CONFIGS[1], 2.5, detail={"artifact": "b"}), {5: 2.6, 15: 2.5})
        assert study.tell(claims[0], Tried(CONFIGS[0], None, "y is off"))
        assert study.tell(claims[2], Tried(CONFIGS[2], 9.0, is_slow=True), {5: 9.0})
    again = open_study(where)
    assert again.tried() == [
        Tried(CONFIGS[0], None, "y is off"),
        Tried(CONFIGS[1], 2.5, detail={"artifact": "b"}),
        Tried(CONFIGS[2], 9.0, is_slow=True),
    ]
    assert again.about() == {"op": "rms_norm"} and study_names(again.storage) == ["study"]
    states = [trial.state for trial in again.frozen()]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED]
    assert again.frozen()[1].intermediate_values == {5: 2.6, 15: 2.5}


def test_a_configuration_is_claimed_once_and_the_budget_is_held(where):
    with open_study(where).attended() as one, open_study(where).attended() as other:
        claim = one.claim(CONFIGS[0])
        assert claim is not None and other.claim(CONFIGS[0]) is None
        assert other.claim(CONFIGS[1], limit=2) is not None
        assert one.claim(CONFIGS[2], limit=2) is None and one.claim(CONFIGS[2], limit=3) is not None
        assert one.others() == 1 and other.others() == 2
        assert one.company() == other.company() == 1
        one.release(claim)
        assert other.claim(CONFIGS[0]) is not None
        assert len(one.taken()) == 3


def test_what_a_dead_worker_held_is_given_up_and_its_late_answer_does_not_count(where, monkeypatch):
    with open_study(where).attended() as one, open_study(where).attended() as other:
        claim = one.claim(CONFIGS[0])
        assert other.recover() == [] and other.claim(CONFIGS[0]) is None
        kill(one, monkeypatch)
        assert other.recover() == [CONFIGS[0]] and other.others() == 0 and other.company() == 0
        retried = other.claim(CONFIGS[0])
        assert retried is not None and other.recover() == []
        assert other.tell(retried, Tried(CONFIGS[0], 1.0))
        assert not one.tell(claim, Tried(CONFIGS[0], 7.0))
        assert other.tried() == [Tried(CONFIGS[0], 1.0)]


def test_all_workers_go_by_the_first_measurement_of_the_default(where):
    one, other = open_study(where), open_study(where)
    assert one.default() is None and other.default() is None
    assert one.keep_default(Tried(CONFIGS[0], 2.0)).score_us == 2.0
    assert other.keep_default(Tried(CONFIGS[0], 2.5)) == other.default() == Tried(CONFIGS[0], 2.0)
    assert other.tried() == []


def test_a_configuration_that_kills_its_workers_is_a_failure(where, monkeypatch):
    watcher = open_study(where)
    for _ in range(3):
        victim = open_study(where)
        with victim.attended():
            assert victim.claim(CONFIGS[0]) is not None
            kill(victim, monkeypatch)
        watcher.recover()
    assert [tried.failure for tried in watcher.tried()] == ["3 workers died while they had it"]
    assert watcher.recover() == [] and watcher.claim(CONFIGS[0]) is None


def test_a_process_with_the_same_number_is_another_one():
    worker = Worker.this()
    attendance = Attendance()
    assert not attendance.is_dead(worker.record(1))
    assert attendance.is_dead({**worker.record(1), "started": worker.started + 1})
    assert attendance.is_dead({**worker.record(1), "pid": dead_process()})
    assert attendance.is_dead(None)


def test_a_worker_elsewhere_lives_while_its_beat_changes():
    record = {**Worker.this().record(1), "place": "another machine", "pid": 1}
    attendance = Attendance(grace_s=0.0)
    assert not attendance.is_dead(record)
    assert attendance.is_dead(record)
    assert not attendance.is_dead({**record, "beat": 2})
    assert not Attendance(grace_s=60.0).is_dead(record)


def test_beats_go_on_while_attended(where):
    study = open_study(where, beat_s=0.01)
    key = f"worker:{study.worker.name}"
    with study.attended():
        before = study.storage.get_study_user_attrs(study._id)[key]["beat"]
        for _ in range(1000):
            if study.storage.get_study_user_attrs(study._id)[key]["beat"] > before:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no beat")


def test_a_worker_that_joins_while_another_one_looks_is_not_taken_for_dead(where, monkeypatch):
    with ExitStack() as until_the_end:
        watcher = until_the_end.enter_context(open_study(where).attended())
        joined: list[Study] = []

        def join_first(read):
            def reading(study_id: int, *arguments, **options):
                found = read(study_id, *arguments, **options)
                if not joined:  # another worker begins after this first read and claims before the second one
                    joined.append(until_the_end.enter_context(open_study(where).attended()))
                    assert joined[0].claim(CONFIGS[0]) is not None
                return found

            return reading

        for name in ("get_all_trials", "get_study_user_attrs"):
            monkeypatch.setattr(watcher.storage, name, join_first(getattr(watcher.storage, name)))
        assert watcher.recover() == [] and joined
        assert watcher.recover() == [] and watcher.others() == 1
