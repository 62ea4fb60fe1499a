"""Rules that several operators' judges share. Each looks at one output and returns what it found, one line each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dsv4.generator.verify import metrics
from dsv4.generator.verify.case import Verdict


def bf16_within(
    name: str, got: torch.Tensor, expected: torch.Tensor, error: torch.Tensor, *, inexact_share: float = 1e-3
) -> list[str]:
    """``got`` (bf16) is the rounding of numbers that are at most ``error`` (float64, same shape) off ``expected``.

    Rounding is monotone, so each element must lie between the roundings of expected − error and expected + error;
    where that is less than half a bf16 step, which only cancellation exceeds, this means at most one step. Besides, at
    most ``inexact_share`` of the elements may differ from the correctly rounded ones. NaN and infinities must be where
    the float64 result has them.
    """
    if not got.numel():
        return []
    got = got.contiguous()
    finite = torch.isfinite(expected)
    exact = metrics.round_to_bf16(expected)
    slack = torch.where(finite, error, 0.0)
    low, high = metrics.round_to_bf16(expected - slack), metrics.round_to_bf16(expected + slack)
    inside = (got >= low) & (got <= high) | (metrics.bf16_ulps_apart(got, exact) == 0)
    findings = []
    wrong = int((~inside).sum())
    if wrong:
        place = (~inside).nonzero()[0].tolist()
        at = tuple(place)
        findings.append(
            f"{name}: {wrong} of {got.numel()} elements are further off than rounding explains, the first at {place}: "
            f"{float(got[at]):.6g} instead of {float(exact[at]):.6g} (between {float(low[at]):.6g} and "
            f"{float(high[at]):.6g})"
        )
    inexact = int((metrics.bf16_ulps_apart(got, exact) > 0).sum())
    allowed = math.ceil(inexact_share * got.numel())
    if inexact > allowed:
        findings.append(f"{name}: {inexact} of {got.numel()} elements are not the correctly rounded; {allowed} may be")
    return findings


def f32_within(name: str, got: torch.Tensor, expected: torch.Tensor, error: torch.Tensor) -> list[str]:
    """``got`` (f32) is at most ``error`` (float64, same shape) off ``expected``, with its NaN and infinities."""
    wide = got.to(torch.float64)
    finite = torch.isfinite(expected)
    off = (wide - torch.where(finite, expected, 0.0)).abs().nan_to_num(nan=math.inf)
    same = (wide == expected) | (wide.isnan() & expected.isnan())
    wrong = torch.where(finite, off > error, ~same)
    if not int(wrong.sum()):
        return []
    place = wrong.nonzero()[0].tolist()
    at = tuple(place)
    return [
        f"{name}: {int(wrong.sum())} of {got.numel()} elements are too far off, the first at {place}: "
        f"{float(wide[at]):.9g} instead of {float(expected[at]):.9g}, allowed error {float(error[at]):.3g}"
    ]


def verdict(
    got: torch.Tensor, expected: torch.Tensor, findings: list[str], detail: Mapping[str, float] | None = None
) -> Verdict:
    """``findings`` with the measures of error of the operator's main output, over its finite answers.

    ``detail``: figures to be kept beside the number of elements.
    """
    finite = torch.isfinite(expected)
    ours = torch.where(finite, got.to(torch.float64), 0.0)
    theirs = torch.where(finite, expected, 0.0)
    rows = metrics.row_rel_l2(ours, theirs)
    error = (ours - theirs).abs().nan_to_num(nan=math.inf)
    return Verdict(
        ok=not findings,
        cosine=metrics.cosine(ours, theirs),
        rel_l2=metrics.rel_l2(ours, theirs),
        max_abs=float(error.max()) if error.numel() else 0.0,
        worst_row=int(rows.argmax()) if rows.numel() else -1,
        findings=tuple(findings),
        detail={**(detail or {}), "elements": got.numel()},
    )
