"""Errors of the compiler in one line: what, where in which file, and the detail that it hides further down."""

from __future__ import annotations

import os
import re
import traceback

from dsv4.generator.build.ptx import SOURCE_NAME

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PLACE = re.compile(r"^\s*-->\s*(\S+?):(\d+)", re.MULTILINE)
_DETAIL = re.compile(
    r"^\s*(?:= note: Caused exception:|= note:|error:)\s*(.+?)(?=\n\s*(?:=|\w+:|$))", re.MULTILINE | re.DOTALL
)
_MAX_CHARACTERS = 400


class CompileFailed(RuntimeError):
    """A request that gives no kernel, in one line."""


def one_line(error: BaseException) -> str:
    """``headline: detail (file:line)``, at most 400 characters.

    The compiler's own errors are blocks: a headline, ``--> file:line``, the source around it, notes. Any other
    exception gives its type, its first line, and the last line of the emitted file that it came through.
    """
    text = _COLOURS.sub("", str(error)).strip()
    headline, _, rest = text.partition("\n")
    place = _PLACE.search(rest)
    if isinstance(error, CompileFailed):
        return _short(headline)
    if place is None:
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE_NAME]
        where = f" ({SOURCE_NAME}:{frames[-1]})" if frames else ""
        return _short(f"{type(error).__name__}: {headline}", where)
    detail = next((found for found in map(_flat, _DETAIL.findall(rest)) if found not in headline), "")
    return _short(f"{headline.rstrip('.')}: {detail}" if detail else headline, f" ({_file(place[1])}:{place[2]})")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _file(path: str) -> str:
    """The path without the machine: relative names were given to the compiler, which may have made them absolute."""
    return os.path.relpath(path) if os.path.isabs(path) and path.startswith(os.getcwd() + os.sep) else path


def _short(text: str, end: str = "") -> str:
    text = _flat(text)
    room = _MAX_CHARACTERS - len(end)
    return (text if len(text) <= room else text[: room - 1] + "…") + end
