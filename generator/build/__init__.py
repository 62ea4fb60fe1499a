"""Compilation: worker processes, the build cache, and what a compiled kernel turns out to take.

The names below are imported when they are asked for: a compile process must not pay for the whole package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv4.generator.build.builder import BuildResult, build
    from dsv4.generator.build.pool import PoolError
    from dsv4.generator.build.support import SupportError, build_support_library

__all__ = ["BuildResult", "PoolError", "SupportError", "build", "build_support_library"]

_HOMES = {
    "BuildResult": "builder",
    "PoolError": "pool",
    "SupportError": "support",
    "build": "builder",
    "build_support_library": "support",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
