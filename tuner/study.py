"""A study that several processes work on: each configuration is claimed by one of them, and told once.

A claim is a running trial that carries its configuration from the moment at which it exists; of two claims of one
configuration the one with the lower number holds. What a worker held when it died is given up and claimed again. The
state of a trial changes last and only once, so that whatever happens to a worker, nothing is lost and nothing counts
twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.tuner import lease
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.lease import Attendance, Worker
from dsv4.tuner.tried import Tried

LOST_MAX = 3
"""A configuration whose worker died so many times is taken for the cause."""
_WORKER = "worker:"


@dataclass(frozen=True)
class Claim:
    """A trial that this process holds."""

    trial_id: int
    number: int
    config: dict[str, Scalar]


class Study:
    """Opens the study ``name`` in ``storage``, or goes on with it. ``about()`` says in a new one what the question is.

    Use it as a context: inside, others can see that this process is alive.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        encoding: Encoding,
        *,
        about: Callable[[], Mapping[str, Any]] | None = None,
        attendance: Attendance | None = None,
        lost_max: int = LOST_MAX,
        beat_s: float = lease.BEAT_S,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage, self.name, self.encoding = storage, name, encoding
        self.worker = Worker.this()
        self.attendance = attendance or Attendance()
        self.lost_max, self._beat_s = lost_max, beat_s
        self._beat = 0
        try:
            self._id = storage.create_new_study([StudyDirection.MINIMIZE], study_name=name)
        except DuplicatedStudyError:
            self._id = storage.get_study_id_from_name(name)
        if about and "about" not in storage.get_study_user_attrs(self._id):
            storage.set_study_user_attr(self._id, "about", dict(about()))

    @contextmanager
    def attended(self) -> Iterator[Study]:
        """While open, this worker's beat goes on."""
        self._beat_once()
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(self._beat_s):
                with suppress(Exception):  # a storage that fails shows at the next claim, in the thread that counts
                    self._beat_once()

        thread = threading.Thread(target=go_on, name="beat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()

    def _beat_once(self) -> None:
        self._beat += 1
        record = self.worker.record(self._beat)
        self.storage.set_study_user_attr(self._id, f"{_WORKER}{self.worker.name}", record)

    def about(self) -> dict[str, Any]:
        """What the question was, as the first worker wrote it."""
        found: dict[str, Any] = self.storage.get_study_user_attrs(self._id).get("about", {})
        return found

    def default(self) -> Tried | None:
        """The default as the first worker measured it, which all go by; None before that."""
        found = self.storage.get_study_user_attrs(self._id).get("default")
        return None if found is None else Tried(**found)

    def keep_default(self, tried: Tried) -> Tried:
        """Go by this measurement of the default, unless another worker was quicker; the one that all go by."""
        if (known := self.default()) is not None:
            return known
        self.storage.set_study_user_attr(self._id, "default", asdict(tried))
        return tried

    def claim(self, config: dict[str, Scalar], *, limit: int | None = None) -> Claim | None:
        """Hold ``config`` for this worker; None if another has it, or if ``limit`` configurations are taken already."""
        key = canonical_json(config)
        template = create_trial(
            state=TrialState.RUNNING,
            params=self.encoding.params(config),
            distributions=self.encoding.distributions,
            user_attrs={"key": key, "config": config, "worker": self.worker.name},
        )
        trial_id = self.storage.create_new_trial(self._id, template)
        number = self.storage.get_trial_number_from_id(trial_id)
        before = [trial for trial in self._trials() if trial.number < number]
        if any(trial.user_attrs["key"] == key for trial in before):
            self._withdraw(trial_id, "another worker has it")
            return None
        if limit is not None and len(before) >= limit:
            self._withdraw(trial_id, "the budget is spent")
            return None
        return Claim(trial_id, number, config)

    def _withdraw(self, trial_id: int, why: str) -> None:
        self.storage.set_trial_user_attr(trial_id, "withdrawn", why)
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def tell(self, claim: Claim, tried: Tried, rungs: Mapping[int, float] | None = None) -> bool:
        """The outcome of a claim; ``rungs`` maps timing rounds to the microseconds that they gave.

        False where the claim had been given up as lost: the outcome then does not count.
        """
        return self._finish(claim.trial_id, tried, rungs or {})

    def _finish(self, trial_id: int, tried: Tried, rungs: Mapping[int, float]) -> bool:
        done = tried.score_us is not None and not tried.is_slow
        try:
            for rounds, us in rungs.items():
                self.storage.set_trial_intermediate_value(trial_id, rounds, us)
            self.storage.set_trial_user_attr(trial_id, "outcome", asdict(tried))
            self.storage.set_trial_state_values(
                trial_id,
                TrialState.COMPLETE if done else TrialState.PRUNED,
                [tried.score_us] if done and tried.score_us is not None else None,
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def release(self, claim: Claim) -> None:
        """Give a claim back unmeasured (an interrupt): somebody else may take the configuration."""
        with suppress(UpdateFinishedTrialError):
            self._withdraw(claim.trial_id, "given back")

    def recover(self) -> list[dict[str, Scalar]]:
        """Give up what dead workers held; the configurations that are free again, the oldest first.

        One that has cost ``lost_max`` workers their life is told as a failure.
        """
        for trial, record in self._held_by_others():
            if not self.attendance.is_dead(record):
                continue
            key, config = trial.user_attrs["key"], trial.user_attrs["config"]
            lost = self._lost()[key] + 1
            if lost >= self.lost_max:
                self._finish(trial._trial_id, Tried(config, None, f"{lost} workers died while they had it"), {})
                continue
            with suppress(UpdateFinishedTrialError):  # somebody else gave it up first
                self.storage.set_trial_user_attr(trial._trial_id, "lost", True)
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        taken = self.taken()
        lost_trials = [trial for trial in self._every() if trial.user_attrs.get("lost")]
        free = {trial.user_attrs["key"]: trial.user_attrs["config"] for trial in lost_trials}
        return [config for key, config in free.items() if key not in taken]

    def company(self) -> int:
        """Living workers of this study other than this one."""
        records = self.storage.get_study_user_attrs(self._id)
        return sum(
            name.startswith(_WORKER) and name != f"{_WORKER}{self.worker.name}" and not self.attendance.is_dead(record)
            for name, record in records.items()
        )

    def others(self) -> int:
        """Claims that living workers other than this one hold."""
        return sum(not self.attendance.is_dead(record) for _, record in self._held_by_others())

    def _held_by_others(self) -> list[tuple[FrozenTrial, dict[str, Any] | None]]:
        """The claims of other workers, each with its worker's record.

        The records are read last: a worker writes its own before it claims anything, so that one which joins between
        the two reads is not taken for one that never was.
        """
        running = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        records = self.storage.get_study_user_attrs(self._id)
        names = [(trial, trial.user_attrs["worker"]) for trial in running]
        return [(trial, records.get(f"{_WORKER}{name}")) for trial, name in names if name != self.worker.name]

    def taken(self) -> set[str]:
        """Keys of the configurations that are claimed or told."""
        return {trial.user_attrs["key"] for trial in self._trials()}

    def tried(self) -> list[Tried]:
        """Every configuration with an outcome, in the order of claiming."""
        return [
            Tried(**trial.user_attrs["outcome"])
            for trial in self._trials()
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]

    def frozen(self) -> list[FrozenTrial]:
        """The trials with an outcome as Optuna has them (for its own evaluations)."""
        return [trial for trial in self._trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    def _lost(self) -> Counter[str]:
        return Counter(trial.user_attrs["key"] for trial in self._every() if trial.user_attrs.get("lost"))

    def _trials(self) -> list[FrozenTrial]:
        """Trials that hold a configuration, running or told."""
        return [trial for trial in self._every() if trial.state != TrialState.FAIL]

    def _every(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self._id, deepcopy=False)


def study_names(storage: BaseStorage) -> list[str]:
    """The studies in ``storage``, the oldest first."""
    return [study.study_name for study in storage.get_all_studies()]
