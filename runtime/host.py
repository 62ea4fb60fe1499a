"""This machine's processor and C library, as far as a compiled host object depends on them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

# Manifests say sse3 where /proc/cpuinfo keeps to Intel's old code name.
_CPUINFO_NAMES = {"sse3": "pni"}


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Feature flags of the first processor, in /proc/cpuinfo's spelling; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def missing_features(needed: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``needed`` that this processor lacks."""
    flags = cpu_flags()
    return tuple(name for name in needed if _CPUINFO_NAMES.get(name, name) not in flags)


def glibc_version() -> tuple[int, ...]:
    """Version of the C library of this process, ``()`` where it is not glibc."""
    try:
        spelled = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ()
    return parse_version(spelled.rpartition(" ")[2])


def parse_version(spelled: str) -> tuple[int, ...]:
    """``"2.36"`` → ``(2, 36)``; raises ``ValueError`` for anything but numbers and dots."""
    return tuple(int(part) for part in spelled.split("."))
