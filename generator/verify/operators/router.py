"""router: the choice of experts and their weights, judged by generator/verify/routing.py's rule.

A float32 logit may be off what sums of tensor cores can make it. Inputs that are small whole numbers are summed exactly
and leave no room. The counters must be zero again.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.routing import choice, counters_at_rest, first_wrong_place, judge_choice, tensor_core_error
from dsv4.generator.verify.routing_cases import gate_inputs
from dsv4.runtime.artifact import Scalar

FACTOR = 1.5
MOST_SPLITS = 16
"""Parts that the workspace has room for."""
COUNTED_TOKENS = 16
"""Tokens of one counter."""

THOROUGH_CASES = (1, 2)
"""Seven tokens, and nineteen (two groups), of ties (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 16}


def logit_error(y: torch.Tensor, gate: torch.Tensor, config: dict[str, Scalar]) -> torch.Tensor:
    """What a logit [T, E] may be off."""
    terms = y.double().abs() @ gate.double().abs().T
    splits, warps = int(config.get("k_splits", 1)), int(config.get("warps", 8))
    return tensor_core_error(terms, y.shape[1] // (16 * splits * warps), splits + warps)


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    k = dims["k"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []
    for given in gate_inputs(dims["d"], dims["E"], generator, device):
        logits = given.y.double() @ given.gate.double().T
        error = torch.zeros_like(logits) if given.exact else logit_error(given.y, given.gate, config)
        rows = given.y.shape[0]
        made.append(
            Case(
                op="router",
                name=given.name,
                inputs={"y": given.y, "gate": given.gate, "bias": given.bias, "factor": FACTOR},
                outputs={
                    "experts": OutputLayout((rows, k), (k, 1), torch.int32),
                    "weights": OutputLayout((rows, k), (k, 1), torch.float32),
                },
                expected=choice(logits, error, k=k, factor=FACTOR, bias=given.bias, experts=None),
                inouts={
                    "counters": torch.zeros(-(-rows // COUNTED_TOKENS), dtype=torch.int32, device=device),
                    "partials": torch.zeros(MOST_SPLITS, rows, dims["E"], device=device),
                },
            )
        )
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    return counters_at_rest(judge_choice(got, case.expected, FACTOR), got["counters"])


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong expert or else weight; a tile is a group of tokens."""
    place = first_wrong_place(got, case.expected, FACTOR)
    if place is None:
        return None
    name, index = place
    return name, index, f"tile {index[0] // COUNTED_TOKENS} (16 tokens), token {index[0] % COUNTED_TOKENS} of it"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, columns, experts, k = sizes["T"], dims["d"], dims["E"], dims["k"]
    gate = torch.randn(experts, columns, generator=generator, device=device) / math.sqrt(columns)
    return {
        "y": torch.randn(rows, columns, generator=generator, device=device, dtype=torch.bfloat16),
        "gate": gate.to(torch.bfloat16),
        "bias": torch.randn(experts, generator=generator, device=device) * 0.1,
        "factor": FACTOR,
        "counters": torch.zeros(-(-rows // COUNTED_TOKENS), dtype=torch.int32, device=device),
        "experts": torch.empty(rows, k, dtype=torch.int32, device=device),
        "weights": torch.empty(rows, k, device=device),
        "partials": torch.empty(MOST_SPLITS, rows, experts, device=device),
    }
