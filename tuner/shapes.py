"""The shapes that a sweep measures unless it is told others: what serving sees, small and large."""

from __future__ import annotations

import importlib

from dsv4.generator.console import UsageError, parse_assignments
from dsv4.tuner.protocol import Sizes

Bounds = dict[str, tuple[int, int | None]]

DEFAULT_SHAPES: dict[str, tuple[Sizes, ...]] = {
    "rms_norm": ({"T": 1}, {"T": 64}, {"T": 1024}, {"T": 16384}),
    "fmha": (
        {"B": 4, "Hq": 32, "Hkv": 32, "Sq": 4096, "Sk": 4096},
        {"B": 2, "Hq": 32, "Hkv": 8, "Sq": 1000, "Sk": 3000},
    ),
}


def shapes(op: str, given: list[str]) -> tuple[Sizes, ...]:
    """``["T=64", "T=8192"]`` or ``["B=1,Sq=128"]`` as sizes; where nothing is given those of ``DEFAULT_SHAPES``, else
    the one that the operator's workload has.

    Raises UsageError for what is no size, a name that the operator does not have, and an operator without a workload.
    """
    known = workload_sizes(op)
    if not given:
        if op in DEFAULT_SHAPES:
            return DEFAULT_SHAPES[op]
        if known is None:
            raise UsageError(f"--shape: {op} has no shapes of its own; valid: --shape NAME=SIZE,NAME=SIZE")
        return (known,)
    found = []
    for text in given:
        sizes = parse_assignments("--shape", text.split(","))
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UsageError(f"--shape: found '{name}={size}'; valid: a whole number from 1")
            if known is not None and name not in known:
                raise UsageError(f"--shape: found '{name}', which {op} does not have; valid: {', '.join(known)}")
        found.append({name: int(size) for name, size in sizes.items()})
    return tuple(found)


def workload_sizes(op: str) -> Sizes | None:
    """The sizes that the operator's timed workload takes, with their usual values; None where it has no workload."""
    try:
        module = importlib.import_module(f"dsv4.generator.verify.operators.{op}")
    except ModuleNotFoundError:
        return None
    return dict(module.WORKLOAD_SIZES)


def bucket(given: list[str]) -> Bounds:
    """``["T=1:64", "Sk=4096:"]`` as inclusive bounds. Raises UsageError."""
    bounds: Bounds = {}
    for text in given:
        name, _, span = text.partition("=")
        low, colon, high = span.partition(":")
        if not (name and colon and low.isdigit() and (high.isdigit() or not high) and int(low) <= int(high or low)):
            raise UsageError(f"--bucket: found '{text}'; valid: NAME=LOW:HIGH or NAME=LOW: (both ends included)")
        bounds[name] = (int(low), int(high) if high else None)
    return bounds


def outside(bounds: Bounds, sizes: Sizes) -> str | None:
    """The first size that lies outside ``bounds``, in one line, or ``None``."""
    for name, (low, high) in bounds.items():
        if name not in sizes:
            return f"{name} has bounds and no size"
        if sizes[name] < low or (high is not None and sizes[name] > high):
            return f"{name}={sizes[name]} lies outside {low}:{'' if high is None else high}"
    return None
