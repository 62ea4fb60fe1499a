"""Approximations: the error of either side against the true value, beside what the PTX ISA promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.agreement.families import functions
from benchmarks.agreement.probe import OUT, Probe
from dsv4.emulator.policy import FIXED

Array = np.ndarray


@dataclass(frozen=True)
class Promise:
    """``true`` in float64 of the operands, ``inside`` which of them the promise is for, and the largest error.

    ``unit``: "absolute", "relative", "ulp" (units in the last place of the true value) or "rounded ulp" (against the
    correctly rounded value). Numbers of PTX ISA 9.1.
    """

    true: Callable[..., Array]
    inside: Callable[..., Array]
    bound: float
    unit: str

    def errors(self, operands: list[Array], bits: Array) -> Array:
        """The error of each result in ``bits`` (uint32 of f32) that the promise is for; operands in float64."""
        with np.errstate(all="ignore"):
            inside = self.inside(*operands)
            true = self.true(*(x[inside] for x in operands))
            normal = np.isfinite(true) & (np.abs(true) < 2.0**128) & ((np.abs(true) >= 2.0**-126) | (true == 0))
            return _error(bits.view(np.float32).astype(np.float64)[inside][normal], true[normal], self.unit)


def _finite(*operands: Array) -> Array:
    return np.logical_and.reduce([np.isfinite(x) & ((x == 0) | (np.abs(x) >= 2.0**-126)) for x in operands])


def _positive(x: Array) -> Array:
    return _finite(x) & (x > 0)


PROMISES = {
    "ex2": Promise(np.exp2, lambda x: _finite(x) & (np.abs(x) < 126), 2.0, "rounded ulp"),
    "lg2": Promise(np.log2, lambda x: _positive(x) & ((x <= 0.5) | (x >= 2.0)), 2.0**-22, "relative"),
    "lg2 near 1": Promise(np.log2, lambda x: _positive(x) & (x > 0.5) & (x < 2.0), 2.0**-22, "absolute"),
    "rcp": Promise(lambda x: 1.0 / x, lambda x: _finite(x) & (x != 0) & (np.abs(x) <= 2.0**126), 1.0, "ulp"),
    "rsqrt": Promise(lambda x: 1.0 / np.sqrt(x), _positive, 2.0**-22.9, "relative"),
    "sqrt": Promise(np.sqrt, _positive, 2.0**-23, "relative"),
    "sin": Promise(np.sin, lambda x: _finite(x) & (np.abs(x) <= 2 * np.pi), 2.0**-20.5, "absolute"),
    "cos": Promise(np.cos, lambda x: _finite(x) & (np.abs(x) <= 2 * np.pi), 2.0**-20.5, "absolute"),
    "tanh": Promise(np.tanh, _finite, 2.0**-11, "relative"),
    "div": Promise(
        np.divide,
        lambda a, b: _finite(a, b) & (a != 0) & (np.abs(b) >= 2.0**-126) & (np.abs(b) <= 2.0**126),
        2.0,
        "ulp",
    ),
}


def _error(found: Array, true: Array, unit: str) -> Array:
    error = np.abs(found - true)
    if unit == "absolute":
        return error
    if unit == "relative":
        return error / np.maximum(np.abs(true), 2.0**-126)
    if unit == "rounded ulp":
        error = np.abs(found - true.astype(np.float32).astype(np.float64))
    _, exponent = np.frexp(true)
    return error / np.ldexp(1.0, np.maximum(exponent - 24, -149))


def promises_of(opcode: str) -> dict[str, Promise]:
    """What is promised of an approximation, by name."""
    return {name: promise for name, promise in PROMISES.items() if name.split()[0] == opcode.split(".")[0]}


def operands_of(probe: Probe) -> list[Array]:
    """A function probe's operands in float64."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return [a.view(np.float32).astype(np.float64) for name, a in probe.kernel.arrays.items() if name != OUT]


def function_errors(arrays: dict[str, np.ndarray], only: str = "") -> list[dict[str, Any]]:
    """For each row of the f32 function probes: the promise, and the largest error on the GPU and in the emulator."""
    found = []
    for probe in functions.probes():
        if probe.kind != "f32" or f"probe/{probe.key}" not in arrays or not probe.key.startswith(only):
            continue
        probe.kernel.run(FIXED[0])
        for row, label in enumerate(probe.labels):
            for name, promise in promises_of(label).items():
                sides = [
                    promise.errors(operands_of(probe), out[row]) for out in (arrays[f"probe/{probe.key}"], probe.out)
                ]
                if not len(sides[0]):
                    continue
                entry: dict[str, Any] = {"probe": probe.key, "row": label, "promise": name, "unit": promise.unit}
                largest = {"gpu": float(sides[0].max()), "emulator": float(sides[1].max())}
                found.append({**entry, "bound": promise.bound, **largest, "samples": len(sides[0])})
    return found
