"""The shapes that a sweep measures unless it is told others: what serving sees, small and large."""

from __future__ import annotations

from dsv4.generator.console import UsageError, parse_assignments
from dsv4.tuner.protocol import Sizes

DEFAULT_SHAPES: dict[str, tuple[Sizes, ...]] = {
    "rms_norm": ({"T": 1}, {"T": 64}, {"T": 1024}, {"T": 16384}),
    "fmha": (
        {"B": 4, "Hq": 32, "Hkv": 32, "Sq": 4096, "Sk": 4096},
        {"B": 2, "Hq": 32, "Hkv": 8, "Sq": 1000, "Sk": 3000},
    ),
}


def shapes(op: str, given: list[str]) -> tuple[Sizes, ...]:
    """``["T=64", "T=8192"]`` or ``["B=1,Sq=128"]`` as sizes; the operator's own where nothing is given.

    Raises UsageError for what is no size, and for an operator whose shapes nobody has written down.
    """
    if not given:
        if op not in DEFAULT_SHAPES:
            raise UsageError(f"--shape: {op} has no shapes of its own; valid: --shape NAME=SIZE,NAME=SIZE")
        return DEFAULT_SHAPES[op]
    found = []
    for text in given:
        sizes = parse_assignments("--shape", text.split(","))
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UsageError(f"--shape: found '{name}={size}'; valid: a whole number from 1")
        found.append({name: int(size) for name, size in sizes.items()})
    return tuple(found)


def bucket(given: list[str]) -> dict[str, tuple[int, int | None]]:
    """``["T=1:64", "Sk=4096:"]`` as inclusive bounds. Raises UsageError."""
    bounds: dict[str, tuple[int, int | None]] = {}
    for text in given:
        name, _, span = text.partition("=")
        low, colon, high = span.partition(":")
        if not (name and colon and low.isdigit() and (high.isdigit() or not high) and int(low) <= int(high or low)):
            raise UsageError(f"--bucket: found '{text}'; valid: NAME=LOW:HIGH or NAME=LOW: (both ends included)")
        bounds[name] = (int(low), int(high) if high else None)
    return bounds


def outside(bounds: dict[str, tuple[int, int | None]], sizes: Sizes) -> str | None:
    """The first size that lies outside ``bounds``, in one line, or ``None``."""
    for name, (low, high) in bounds.items():
        if name not in sizes:
            return f"{name} has bounds and no size"
        if sizes[name] < low or (high is not None and sizes[name] > high):
            return f"{name}={sizes[name]} lies outside {low}:{'' if high is None else high}"
    return None
