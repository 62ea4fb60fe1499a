"""Whether a result is right: the tolerances of FlashMLA's own tests, as they are meant there.

An element is right when it is off by less than the absolute tolerance or by less than the relative one; ±∞ and NaN have
to stand where they are expected; and the whole tensor may be so far from the expected one (1 − 2⟨a,r⟩/(‖a‖²+‖r‖²)).
Decoding is held to the tolerances of FlashMLA's decoding tests, prefill to these and to those of its prefill tests,
which are narrower in some and wider in other respects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

LEAST = 1e-6
"""Added to the size of the expected number that an error is relative to."""
NO_NUMBERS = 1e-12
"""A tensor whose squares sum up to less has no direction."""


@dataclass(frozen=True)
class Tolerance:
    absolute: float
    relative: float
    distance: float | None = None


DECODE_OUT = Tolerance(1e-3, 2.01 / 128, 5e-6)
DECODE_LSE = Tolerance(1e-6, 8.01 / 65536)
PREFILL_OUT = Tolerance(8e-4, 3.01 / 128, 7e-6)
PREFILL_NUMBERS = Tolerance(1e-6, 2.01 / 65536)
DECODE: Mapping[str, tuple[Tolerance, ...]] = {"out": (DECODE_OUT,), "lse": (DECODE_LSE,)}
PREFILL: Mapping[str, tuple[Tolerance, ...]] = {
    "out": (DECODE_OUT, PREFILL_OUT),
    "max_logits": (DECODE_LSE, PREFILL_NUMBERS),
    "lse": (DECODE_LSE, PREFILL_NUMBERS),
}


@dataclass(frozen=True)
class Verdict:
    """``errors``: the largest by their names. ``findings``: what is wrong, a line each."""

    errors: dict[str, float]
    findings: list[str]


@dataclass
class Judge:
    """Of one tensor, ``name``, that is shown in parts: on the device until ``verdict`` asks for the numbers."""

    name: str
    tolerances: tuple[Tolerance, ...]
    largest: list[torch.Tensor] = field(default_factory=list)
    sums: list[torch.Tensor] = field(default_factory=list)

    def show(self, found: torch.Tensor, right: torch.Tensor) -> None:
        """A part of the result, and the same of what is expected, float64 of the same shape."""
        if found.shape != right.shape:
            raise ValueError(f"{self.name}: shape: found {list(found.shape)}; valid: {list(right.shape)}")
        found = found.to(torch.float64)
        finite = right.isfinite()
        same = torch.where(finite, found.isfinite(), found == right)
        usual = finite & same
        given, plain = torch.where(usual, found, 0.0), torch.where(usual, right, 0.0)
        absolute = (given - plain).abs()
        relative = absolute / (plain.abs() + LEAST)
        shares = [torch.minimum(absolute / t.absolute, relative / t.relative).amax() for t in self.tolerances]
        products = [torch.dot(a.flatten(), b.flatten()) for a, b in ((given, plain), (given, given), (plain, plain))]
        self.largest.append(torch.stack([absolute.amax(), *shares]))
        self.sums.append(torch.stack([(~same).sum().to(torch.float64), *products]))

    def verdict(self) -> Verdict:
        absolute, *shares = torch.stack(self.largest).amax(0).tolist()
        strange, mixed, own, theirs = torch.stack(self.sums).sum(0).tolist()
        errors = {f"{self.name}_abs": absolute, f"{self.name}_of_tolerance": max(shares)}
        findings = [f"{self.name}: {int(strange)} elements are infinite or NaN, or should be"] if strange else []
        distance = 0.0 if theirs < NO_NUMBERS else abs(1 - 2 * mixed / (own + theirs))
        for tolerance, share in zip(self.tolerances, shares, strict=True):
            if share >= 1:
                limits = f"{tolerance.absolute:g} or {tolerance.relative:.3g}"
                findings.append(f"{self.name}: off by {share:.3g} times what is allowed, {limits} of the number")
            if tolerance.distance is not None:
                errors[f"{self.name}_distance"] = distance
                if distance > tolerance.distance:
                    findings.append(f"{self.name}: distance {distance:.3g}; valid: up to {tolerance.distance:g}")
        return Verdict(errors, findings)
