"""What a caller may choose: where the kernels lie, what happens without one, and whether to check values.

Read from the environment once, on first use (``DSV4_CACHE``, ``DSV4_MISSING``, ``DSV4_DEBUG``, ``DSV4_PDL``), and
replaced by ``dsv4.configure``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dsv4.runtime.errors import SettingError

Missing = Literal["raise", "reference"]
_SWITCH = {"": False, "0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True)
class Settings:
    """``missing``: what serves a CUDA tensor that no kernel serves. ``debug``: check value domains too, at the price
    of a device synchronisation a call. ``pdl``: take kernels compiled for programmatic dependent launch."""

    cache: Path | None = None
    missing: Missing = "reference"
    debug: bool = False
    pdl: bool = False

    def __post_init__(self) -> None:
        if self.missing not in get_args(Missing):
            raise SettingError(f"missing: found {self.missing!r}; valid: {', '.join(map(repr, get_args(Missing)))}")


def from_environment() -> Settings:
    """Raises ``SettingError`` where a variable has a value that it cannot have."""
    cache = os.environ.get("DSV4_CACHE")
    missing = os.environ.get("DSV4_MISSING") or "reference"
    if missing not in get_args(Missing):
        raise SettingError(f"DSV4_MISSING: found {missing!r}; valid: {', '.join(get_args(Missing))}")
    return Settings(
        cache=Path(cache) if cache else None,
        missing=missing,  # type: ignore[arg-type]
        debug=_switch("DSV4_DEBUG"),
        pdl=_switch("DSV4_PDL"),
    )


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "").lower()
    if value not in _SWITCH:
        raise SettingError(f"{variable}: found {value!r}; valid: 0 or 1")
    return _SWITCH[value]
