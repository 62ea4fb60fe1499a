"""Why a configuration cannot run."""

from __future__ import annotations

from collections.abc import Iterable


class Refused(Exception):
    """A configuration that is well-formed but does not fit the chip or the operator's own constraints.

    ``reasons`` are one-line sentences, each naming the field to change and what would be valid.
    """

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons: tuple[str, ...] = tuple(" ".join(reason.split()) for reason in reasons)
        super().__init__("; ".join(self.reasons))

    def __repr__(self) -> str:
        return f"Refused({list(self.reasons)!r})"
