"""``python -m dsv4.generate``: the command line, its errors and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from dsv4.runtime.engine.arguments import parser

DONE, PROGRAM_ERROR, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130
_DETAILS = 3
"""Lines of an error that are told after its first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments``; gives the exit code. Errors are one line on stderr."""
    chosen = parser().parse_args(arguments)
    try:
        from dsv4.runtime.engine.generation import generate  # torch is loaded here

        return INTERRUPTED if generate(chosen, sys.stdout, sys.stderr) else DONE
    except KeyboardInterrupt:
        print("error: interrupted before there was a token", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the text has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        return DONE
    except Exception as error:
        if chosen.debug:
            traceback.print_exc()
        code, text = _told(error)
        print(f"error: {text}", file=sys.stderr)
        return code


def _told(error: Exception) -> tuple[int, str]:
    """The exit code and the line for ``error``."""
    import torch

    from dsv4.runtime.errors import Dsv4Error

    if isinstance(error, Dsv4Error | OSError):
        return USAGE_ERROR, one_line(str(error))
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return USAGE_ERROR, one_line(f"memory: found too little: {error}; valid: a smaller --cache or --chunk")
    return PROGRAM_ERROR, one_line(f"{type(error).__name__}: {error} (a fault of this program; --debug shows where)")


def one_line(text: str) -> str:
    """The first lines of ``text`` as one, and how many more there are."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["?"]
    rest = len(lines) - 1 - _DETAILS
    return "; ".join(lines[: 1 + _DETAILS]) + (f"; … {rest} more lines with --debug" if rest > 0 else "")
