"""Several GPUs of one host for one sweep, a worker each: what is to be measured is dealt out among them.

Each part of a batch takes turns with the default on its own GPU, and what counts is the ratio to it, so that GPUs that
differ a little do not favour the configurations that they happen to get. Comparisons at the end go to whichever is
free.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from dsv4.tuner.protocol import Request
from dsv4.tuner.worker import DefaultFailed, Outcome, Stopped, WorkerError

Answer = TypeVar("Answer")
Progress = Callable[[Outcome], None]
WAIT_S = 0.1


class Stoppable(Protocol):
    """Answers requests on one GPU (``worker.run``) until it is told to stop."""

    def __call__(
        self, request: Request, *, limit_s: float, progress: Progress = ..., is_stopped: Callable[[], bool] = ...
    ) -> list[Outcome]: ...


class Spread:
    """Measures on all of ``gpus``. One whose worker does not get ready is left out from then on, and told by ``say``;
    what it had goes to another. With the last one the error is raised."""

    def __init__(self, gpus: Sequence[Stoppable], say: Callable[[str], None] = lambda text: None) -> None:
        self._free: queue.Queue[tuple[int, Stoppable]] = queue.Queue()
        for each in enumerate(gpus):
            self._free.put(each)
        self._say, self._lock = say, threading.Lock()
        self._left = len(gpus)
        self._error: WorkerError | None = None
        self._stopped = threading.Event()

    @property
    def width(self) -> int:
        """How many requests are answered at once."""
        return max(1, self._left)

    def __call__(self, request: Request, *, limit_s: float, progress: Progress = lambda one: None) -> list[Outcome]:
        """One outcome per artifact, in their order; in a comparison one."""

        def told(outcome: Outcome) -> None:  # by one at a time: what it writes is no work for several threads
            with self._lock:
                progress(outcome)

        count = 1 if request.compare else min(self.width, len(request.artifacts))
        if count <= 1:
            return self._on_one(request, limit_s, told)
        parts = [request.artifacts[first::count] for first in range(count)]
        requests = [request.model_copy(update={"artifacts": part}) for part in parts]
        answers = self.together([partial(self._on_one, each, limit_s, told) for each in requests])
        found = {outcome.artifact: outcome for answer in answers for outcome in answer}
        return [found[name] for name in request.artifacts]

    def together(self, tasks: Sequence[Callable[[], Answer]]) -> list[Answer]:
        """The answers of ``tasks``, at work at the same time. An interrupt ends the workers and is raised."""
        answers: dict[int, Answer] = {}
        errors: dict[int, BaseException] = {}

        def work(place: int, task: Callable[[], Answer]) -> None:
            try:
                answers[place] = task()
            except BaseException as error:
                errors[place] = error

        threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(tasks)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # a join without a limit would not see an interrupt on every system
                    thread.join(WAIT_S)
        except KeyboardInterrupt:
            self._stopped.set()
            for thread in threads:
                thread.join(timeout=10.0)
            self._stopped = threading.Event()
            raise
        if errors:
            raise errors[min(errors)]
        return [answers[place] for place in range(len(tasks))]

    def _on_one(self, request: Request, limit_s: float, progress: Progress) -> list[Outcome]:
        """By the first GPU that is free and works."""
        stopped = self._stopped
        while True:
            number, gpu = self._take(stopped)
            try:
                found = gpu(request, limit_s=limit_s, progress=progress, is_stopped=stopped.is_set)
            except DefaultFailed:  # the GPU is well
                self._free.put((number, gpu))
                raise
            except WorkerError as error:
                self._leave_out(number, error)
                continue
            except BaseException:
                self._free.put((number, gpu))
                raise
            self._free.put((number, gpu))
            return found

    def _take(self, stopped: threading.Event) -> tuple[int, Stoppable]:
        while True:
            if self._left == 0 and self._error is not None:
                raise self._error
            if stopped.is_set():
                raise Stopped
            try:
                return self._free.get(timeout=WAIT_S)
            except queue.Empty:
                continue

    def _leave_out(self, number: int, error: WorkerError) -> None:
        with self._lock:
            self._left, self._error = self._left - 1, error
        if self._left:
            self._say(f"the GPU number {number} of this sweep is left out, the others go on: {error}")


def together(measure: Any, tasks: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """The answers of ``tasks``, which measure by ``measure``: at the same time where it has several GPUs."""
    if isinstance(measure, Spread):
        return measure.together(tasks)
    return [task() for task in tasks]
