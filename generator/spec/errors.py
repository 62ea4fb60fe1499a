"""One wrong value in a spec or on the command line, told in one line."""

from __future__ import annotations

from difflib import get_close_matches


class Invalid(ValueError):
    """A value that a schema refuses; raised inside validators, turned into a ``SpecError`` with file and line.

    ``field`` is the path below the value being validated (``""`` for the value itself).
    """

    def __init__(self, found: object, valid: str, field: str = "") -> None:
        super().__init__(f"found {shown(found)}; valid: {valid}")
        self.found = found
        self.valid = valid
        self.field = field


class SpecError(ValueError):
    """``file:line: field: found …; valid: …`` in one line.

    ``file`` and ``line`` are ``None`` where the value did not come from a file (an override on the command line);
    ``origin`` then names what was overridden, for example ``fmha on sm_90a``.
    """

    def __init__(
        self,
        field: str,
        found: object,
        valid: str,
        *,
        file: str | None = None,
        line: int | None = None,
        origin: str | None = None,
        more: int = 0,
    ) -> None:
        self.file, self.line, self.field, self.found, self.valid = file, line, field, found, valid
        place = f"{file}:{line}: " if file and line else f"{file or origin}: " if file or origin else ""
        also = f" (and {more} more wrong field{'s' if more > 1 else ''})" if more else ""
        text = f"{place}{field}: found {shown(found)}; valid: {valid}{also}"
        super().__init__(" ".join(text.split()))


class Words(str):
    """A ``found`` that is a description, not a value: printed without quotes."""


def shown(value: object, limit: int = 80) -> str:
    """``value`` as an error prints it: quoted, on one line, cut after ``limit`` characters."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value) if isinstance(value, Words) else repr(list(value) if isinstance(value, tuple) else value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_of(names: object, found: object = None) -> str:
    """The valid names as a list, with the likely one first when ``found`` is nearly right."""
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    if not listed:
        return "nothing (none is defined)"
    near = get_close_matches(str(found), listed, n=1, cutoff=0.6) if isinstance(found, str) else []
    hint = f" (did you mean {near[0]}?)" if near else ""
    return ", ".join(listed) + hint
