"""router_hash: the table's experts and their weights, judged by generator/verify/routing.py's rule.

A float32 logit may be off half a step of 2^-23 for each addition in its way, times Σ|terms|; small whole numbers leave
no room.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.routing import choice, first_wrong_place, judge_choice
from dsv4.generator.verify.routing_cases import gate_inputs, named_experts
from dsv4.runtime.artifact import Scalar

FACTOR = 1.5

THOROUGH_CASES = (1, 2)
"""Seven tokens, and nineteen with gaps between them (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 16, "V": 129280}


def logit_error(y: torch.Tensor, gate: torch.Tensor, config: dict[str, Scalar]) -> torch.Tensor:
    """What a logit [T, E] may be off: four running sums a thread, their sum, that of the lanes, that of the warps."""
    warps = int(config.get("route_warps", 1))
    return (y.shape[1] // (128 * warps) + 2 + 5 + warps) * 2.0**-24 * (y.double().abs() @ gate.double().abs().T)


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
        table, tokens, named = named_experts(rows, dims["E"], k, generator, device, halves=len(made) % 2 == 1)
        made.append(
            Case(
                op="router_hash",
                name=given.name,
                inputs={"y": given.y, "gate": given.gate, "tid2eid": table, "tokens": tokens, "factor": FACTOR},
                outputs={
                    "experts": OutputLayout((rows, k), (k, 1), torch.int32),
                    "weights": OutputLayout((rows, k), (k, 1), torch.float32),
                },
                expected=choice(logits, error, k=k, factor=FACTOR, bias=None, experts=named),
            )
        )
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    return judge_choice(got, case.expected, FACTOR, named=True)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong expert or else weight; a tile is a token."""
    place = first_wrong_place(got, case.expected, FACTOR, named=True)
    return None if place is None else (*place, f"token {place[1][0]}")


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, columns, experts, k = sizes["T"], dims["d"], dims["E"], dims["k"]
    gate = torch.randn(experts, columns, generator=generator, device=device) / math.sqrt(columns)
    first = torch.randint(0, experts, (sizes["V"], 1), generator=generator, device=device)
    table = (first + torch.arange(k, device=device) * (experts // k)) % experts
    return {
        "y": torch.randn(rows, columns, generator=generator, device=device, dtype=torch.bfloat16),
        "gate": gate.to(torch.bfloat16),
        "tid2eid": table.to(torch.int32),
        "tokens": torch.randint(0, sizes["V"], (rows,), generator=generator, device=device).to(torch.int32),
        "factor": FACTOR,
        "experts": torch.empty(rows, k, dtype=torch.int32, device=device),
        "weights": torch.empty(rows, k, device=device),
    }
