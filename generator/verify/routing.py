"""How a router's choice is judged: experts by float64 scores and what a float32 logit may be off, weights by theirs.

The rule. ``error`` bounds a float32 logit's distance from float64; it is 0 where every float32 sum is exact. From it
and :data:`FUNCTION_ERROR` follows how far an affinity √softplus and a score may be off. Place n of a token must
hold the expert that float64 puts there, or one whose score differs by no more than the two may be off together; equal
float64 scores of exact logits are equal in the kernel too, so there the lower index must come first. Weights are held
against those that float64 gives to the same experts: relative error 1e-5, and what the affinities may be off. Rows
whose logits are not all finite: the experts exist and are distinct.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import softplus

from dsv4.generator.verify.case import Verdict
from dsv4.generator.verify.judging import verdict

WEIGHT_ERROR = 1e-5
FUNCTION_ERROR = 1e-6
"""Relative error of √softplus in float32: ex2.approx, rcp.approx and sqrt.approx are good to 2^-22 each."""

SMALLEST = 2.0**-63
"""√softplus of a float32 that is flushed to zero."""

Choice = dict[str, torch.Tensor]
"""``logits``, ``error`` and ``scores`` (float64 [T, E]), ``experts`` (i64 [T, k]), ``weights`` (float64 [T, k])."""


@dataclass(frozen=True)
class Wrong:
    """Boolean [T, k]: places with a wrong expert, places with a wrong weight."""

    experts: torch.Tensor
    weights: torch.Tensor


def affinity(logits: torch.Tensor) -> torch.Tensor:
    """√softplus in float64, softplus linear above 20."""
    return softplus(logits).sqrt()


def tensor_core_error(terms: torch.Tensor, chain: int, additions: int) -> torch.Tensor:
    """What a logit summed by mma.sync may be off. ``terms``: Σ |products| of each logit (float64).

    An instruction aligns 16 products and the sum so far to the largest exponent, cuts each behind 25 fraction bits and
    the result behind 23 (emulator/core/matrix_sum.c, as an H100 does): (17 · 2^-25 + 2^-23) · Σ|terms| at most.
    ``chain`` of them follow one another, then come ``additions`` in float32, half a step of 2^-23 each.
    """
    return (chain * (17 * 2.0**-25 + 2.0**-23) + additions * 2.0**-24) * terms


def choice(
    logits: torch.Tensor,
    error: torch.Tensor,
    *,
    k: int,
    factor: float,
    bias: torch.Tensor | None,
    experts: torch.Tensor | None,
) -> Choice:
    """What float64 chooses from ``logits`` (float64 [T, E]). ``experts`` [T, k]: given by the hash table."""
    affinities = affinity(logits)
    scores = affinities if bias is None else affinities + bias.double()
    if experts is None:
        experts = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :k]
    factor32 = float(torch.tensor(factor, dtype=torch.float32))
    chosen = affinities.gather(1, experts.long())
    weights = chosen / chosen.sum(dim=-1, keepdim=True) * factor32
    return {"experts": experts.long(), "weights": weights, "scores": scores, "logits": logits, "error": error}


def wrong_places(got: dict[str, torch.Tensor], expected: Choice, factor: float, *, named: bool = False) -> Wrong:
    """Which places of ``got`` (experts i32 [T, k], weights f32 [T, k]) break the rule.

    ``named``: a table says which experts, so that no other will do, whatever the logits are.
    """
    scores, logits, error = expected["scores"], expected["logits"], expected["error"]
    ids, weights = got["experts"].long(), got["weights"].double()
    experts = scores.shape[1]
    exists = (ids >= 0) & (ids < experts)
    safe = ids.clamp(0, max(experts - 1, 0))
    repeated = (safe[:, :, None] == safe[:, None, :]).sum(dim=-1) > 1
    usable = logits.isfinite().all(dim=-1, keepdim=True)
    # how far affinities and scores may be off
    affinities = affinity(logits)
    spread = torch.maximum(affinity(logits + error) - affinities, affinities - affinity(logits - error))
    spread = spread + FUNCTION_ERROR * affinities + SMALLEST
    slack = spread + 2.0**-23 * scores.abs() * (scores != affinities)
    theirs = expected["experts"]
    apart = (scores.gather(1, safe) - scores.gather(1, theirs)).abs()
    near = apart <= slack.gather(1, safe) + slack.gather(1, theirs)
    exact = (error.gather(1, safe) == 0) & (error.gather(1, theirs) == 0)
    near &= ~(exact & (apart == 0))
    other = (safe != theirs) if named else (safe != theirs) & ~near & usable
    # weights of the experts that were really chosen
    factor32 = float(torch.tensor(factor, dtype=torch.float32))
    chosen = affinities.gather(1, safe)
    expect = chosen / chosen.sum(dim=-1, keepdim=True) * factor32
    relative = spread.gather(1, safe) / chosen.clamp_min(1e-300)
    limit = (WEIGHT_ERROR + relative + relative.amax(dim=-1, keepdim=True)) * expect.abs()
    off = ~((weights - expect).abs() <= limit) & usable
    return Wrong(~exists | repeated | other, off)


def counters_at_rest(found: Verdict, counters: torch.Tensor) -> Verdict:
    """``found``, wrong as well where a counter of arrivals is not back at zero, as the next launch needs it."""
    left = int((counters != 0).sum())
    if not left:
        return found
    return replace(found, ok=False, findings=(*found.findings, f"counters: {left} are not zero again"))


def judge_choice(got: dict[str, torch.Tensor], expected: Choice, factor: float, *, named: bool = False) -> Verdict:
    """The verdict on ``got``; cosine and errors are those of the weights."""
    wrong = wrong_places(got, expected, factor, named=named)
    findings = []
    for name, places in (("experts", wrong.experts), ("weights", wrong.weights)):
        if places.any():
            token, place = places.nonzero()[0].tolist()
            findings.append(
                f"{name}: {int(places.sum())} of {places.numel()} are wrong, the first at [{token}, {place}]: "
                f"{got[name][token, place].item():.9g} instead of {expected[name][token, place].item():.9g}"
            )
    same = torch.where(got["experts"].long() == expected["experts"], got["weights"].double(), expected["weights"])
    finite = expected["weights"].isfinite() & same.isfinite()
    return verdict(torch.where(finite, same, 0.0), torch.where(finite, expected["weights"], 0.0), findings)


def first_wrong_place(
    got: dict[str, torch.Tensor], expected: Choice, factor: float, *, named: bool = False
) -> tuple[str, tuple[int, int]] | None:
    """The first wrong expert or else weight: output and index."""
    wrong = wrong_places(got, expected, factor, named=named)
    for name, places in (("experts", wrong.experts), ("weights", wrong.weights)):
        if places.any():
            token, place = places.nonzero()[0].tolist()
            return name, (token, place)
    return None
