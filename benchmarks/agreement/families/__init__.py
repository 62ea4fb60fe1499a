"""Probes by family: each module has ``probes()``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from benchmarks.agreement.probe import Probe

MODULES = (
    "integers",
    "floats",
    "conversions",
    "functions",
    "lanes",
    "memory",
    "atomics",
    "barriers",
    "fragments",
    "warp_matrices",
    "wgmma_layouts",
    "wgmma_sums",
    "tensor_tiles",
    "tensor_writes",
    "bulk_copies",
    "faults",
)


def all_probes(only: str = "") -> Iterator[Probe]:
    """Every probe, or those whose key begins with ``only``."""
    for module in MODULES:
        for probe in importlib.import_module(f"benchmarks.agreement.families.{module}").probes():
            if probe.key.startswith(only):
                yield probe
