"""Run compiled kernels on a CPU and find what is wrong with them: wrong values, races, hangs, reads of unset memory.

The public names are loaded on first use: the emulating process imports this package too, and needs no torch. ::

    report = dsv4.emulator.run(compiled, x, w, output(y), 1e-6, schedules=4)
    report.check()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv4.emulator.arguments import as_dtype, dynamic, inout, output, pointer, reads, workspace
    from dsv4.emulator.client import Client, Object
    from dsv4.emulator.errors import EmulatorError, FindingsError
    from dsv4.emulator.launcher import run, run_artifact, sequence
    from dsv4.emulator.objects import from_artifact, from_compiled, from_files
    from dsv4.emulator.outcome import Finding, Report

_HOMES = {
    "arguments": ("as_dtype", "dynamic", "inout", "output", "pointer", "reads", "workspace"),
    "client": ("Client", "Object"),
    "errors": ("EmulatorError", "FindingsError"),
    "launcher": ("run", "run_artifact", "sequence"),
    "objects": ("from_artifact", "from_compiled", "from_files"),
    "outcome": ("Finding", "Report"),
}

__all__ = [
    "Client",
    "EmulatorError",
    "Finding",
    "FindingsError",
    "Object",
    "Report",
    "as_dtype",
    "dynamic",
    "from_artifact",
    "from_compiled",
    "from_files",
    "inout",
    "output",
    "pointer",
    "reads",
    "run",
    "run_artifact",
    "sequence",
    "workspace",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"dsv4.emulator.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'dsv4.emulator' has no attribute {name!r}")
