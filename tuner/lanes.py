"""Several kernels at the same time, each on a GPU of its own: threads that take jobs until there are none.

A kernel's sweep leaves its GPU idle now and then (something is chosen, compiled, decided), and a small one cannot fill
several. So a host gets through a model's kernels sooner when each GPU has a kernel of its own than when all of them
share one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.tuner.builders import Builder
from dsv4.tuner.spread import WAIT_S, Stoppable
from dsv4.tuner.worker import Outcome, Stopped


@dataclass(frozen=True)
class Lane:
    """A GPU, and who has kernels ready for it."""

    builder: Builder
    measure: Stoppable


def interruptible(measure: Stoppable, stopped: threading.Event) -> Callable[..., list[Outcome]]:
    """``measure`` for a thread, which no Ctrl-C reaches: once ``stopped`` is set its worker is killed, and the thread
    sees an interrupt."""

    def measured(*arguments: Any, **options: Any) -> list[Outcome]:
        heed(stopped)
        try:
            return measure(*arguments, is_stopped=stopped.is_set, **options)
        except Stopped:
            raise KeyboardInterrupt from None

    return measured


def heed(stopped: threading.Event) -> None:
    """Raises KeyboardInterrupt once ``stopped`` is set."""
    if stopped.is_set():
        raise KeyboardInterrupt


def at_once(works: Sequence[Callable[[], None]], stopped: threading.Event) -> None:
    """Have all ``works`` done, a thread each. An interrupt sets ``stopped`` and waits for them; it is not raised, as
    they know what it meant for what they were at. What one of them raises stops the others and is raised."""
    errors: list[BaseException] = []

    def done(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            stopped.set()

    threads = [threading.Thread(target=done, args=(work,), name="lane", daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # a join without a limit would not see an interrupt on every system
            try:
                thread.join(WAIT_S)
            except KeyboardInterrupt:
                if stopped.is_set():  # the second one: whoever wants the end now gets it
                    raise
                stopped.set()
    if errors:
        raise errors[0]
