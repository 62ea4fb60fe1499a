"""How a command line begins: Ctrl-C while it still imports ends it in one line and with exit code 130, as a later one.

Needs the standard library alone, so that it is at work before anything that takes its time.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

EXIT_INTERRUPTED = 130


def enter(name: str, module: str) -> None:
    """Import ``module`` and call its ``main``, as the command ``name``.

    While it is imported there is nothing to be kept, and an exception might be caught, turned into an ImportError or
    printed and dropped by what is imported: an interrupt ends the process. Later it is a KeyboardInterrupt, which
    commands know how to end by; but they import, too, and what becomes of it there is held to be the interrupt that it
    was. Where interrupts are ignored (a shell's background jobs) they stay so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        importlib.import_module(module).main()
        return
    interrupted = False

    def end() -> NoReturn:
        os.write(2, f"{name}: interrupted\n".encode())
        os._exit(EXIT_INTERRUPTED)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def dropped(unraisable: Any) -> None:
        """Interrupt again what was interrupted in a callback, where exceptions are dropped."""
        if unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
            return
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()

    signal.signal(signal.SIGINT, lambda number, frame: end())
    command = importlib.import_module(module)
    sys.unraisablehook = dropped
    try:
        signal.signal(signal.SIGINT, interrupt)
        command.main()
    except SystemExit:
        raise
    except BaseException:
        if interrupted:
            end()
        raise
