"""Reads a YAML file as data with line numbers, and refuses everything that is not plain data.

Only mappings, lists and scalars pass. Tags (``!!python/object`` and all others), anchors, aliases, merge keys and
duplicate keys are errors. Plain scalars follow JSON's spelling: ``true``/``false``, ``null``, decimal numbers; every
other plain scalar is a string (so ``no``, ``1:30`` and ``0o17`` are not silently something else).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from dsv4.generator.spec.errors import SpecError, Words

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
_INT = re.compile(r"[-+]?\d+\Z")
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?\Z|[-+]?\d+[eE][-+]?\d+\Z")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A parsed file: ``data`` and the line (1-based) on which each path in it starts."""

    file: str
    data: Any
    lines: dict[Path, int] = field(repr=False)

    def line(self, path: Path) -> int:
        """The line of ``path``, or of its nearest enclosing value that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(text: str, file: str) -> Source:
    """``text`` as data with lines. Raises SpecError naming ``file`` and the line for anything but plain data."""
    if len(text.encode()) > MAX_BYTES:
        raise SpecError("file", Words(f"{len(text.encode())} bytes"), f"at most {MAX_BYTES} bytes", file=file, line=1)
    lines: dict[Path, int] = {(): 1}
    reader = _Reader(file, lines)
    try:
        loader = yaml.SafeLoader(text)
        try:
            loader.get_event()  # stream start
            if loader.check_event(yaml.StreamEndEvent):
                raise SpecError("file", Words("nothing"), "one YAML mapping", file=file, line=1)
            loader.get_event()  # document start
            data = reader.value(loader, ())
            loader.get_event()  # document end
            if not loader.check_event(yaml.StreamEndEvent):
                line = loader.peek_event().start_mark.line + 1
                raise SpecError("file", Words("a second document"), "one YAML document", file=file, line=line)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError("file", Words(error.problem or "bad syntax"), "YAML syntax", file=file, line=line) from None
    except yaml.YAMLError as error:
        raise SpecError("file", Words(str(error)), "YAML text", file=file, line=1) from None
    if not isinstance(data, dict):
        raise SpecError("file", Words(f"a {type(data).__name__}"), "one YAML mapping", file=file, line=1)
    return Source(file, data, lines)


@dataclass
class _Reader:
    file: str
    lines: dict[Path, int]

    def value(self, loader: Any, path: Path) -> Any:
        event = loader.get_event()
        line = event.start_mark.line + 1
        self.lines.setdefault(path, line)
        if len(path) > MAX_DEPTH:
            self._refuse(path, line, "deeper nesting", f"at most {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse(path, line, f"the YAML alias or anchor {event.anchor!r}", "values written out in full")
        if event.tag is not None:
            self._refuse(path, line, f"the YAML tag {event.tag!r}", "plain data without tags")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.style is None else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not loader.check_event(yaml.SequenceEndEvent):
                items.append(self.value(loader, (*path, len(items))))
            loader.get_event()
            return items
        mapping: dict[str, Any] = {}
        while not loader.check_event(yaml.MappingEndEvent):
            key_event = loader.get_event()
            line = key_event.start_mark.line + 1
            if not isinstance(key_event, yaml.ScalarEvent) or key_event.tag is not None or key_event.anchor is not None:
                self._refuse(path, line, "a key that is not a plain name", "a name")
            key = key_event.value
            if key == "<<":
                self._refuse(path, line, "a merge key <<", "values written out in full")
            if key in mapping:
                self._refuse((*path, key), line, "the same key twice", "one value for each key")
            self.lines[(*path, key)] = line
            mapping[key] = self.value(loader, (*path, key))
        loader.get_event()
        return mapping

    def _refuse(self, path: Path, line: int, found: str, valid: str) -> None:
        raise SpecError(dotted(path) or "file", Words(found), valid, file=self.file, line=line)


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text) and len(text) <= 20:
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def dotted(path: Path) -> str:
    """``("kernels", 0, "when")`` as ``kernels[0].when``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
