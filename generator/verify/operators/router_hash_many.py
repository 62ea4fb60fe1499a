"""router_hash_many: router_hash's task for many tokens, judged by generator/verify/routing.py's rule.

A logit may be off what a chain of tensor-core instructions over all columns can make it, and half a step of 2^-23 for
each of the parts that are added; small whole numbers leave no room.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.operators import router_hash
from dsv4.generator.verify.routing import choice, counters_at_rest, first_wrong_place, judge_choice, tensor_core_error
from dsv4.generator.verify.routing_cases import GateInputs, gate_inputs, named_experts
from dsv4.runtime.artifact import Scalar

FACTOR = 1.5
MOST_PARTS = 57
"""Of 7168 columns in shares of 128, the least, one more than half of the slabs."""
COUNTERS, PARTS = 132, (264, 128, 8)

THOROUGH_CASES = (1, 2)
"""Seven tokens, and nineteen with gaps between them (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192, "V": 129280}


def several_tiles(given: GateInputs, rows: int, generator: torch.Generator) -> GateInputs:
    """``given`` for so many tokens: small whole numbers that differ in every row, NaN and infinity in some."""
    columns, experts = given.gate.shape[1], given.gate.shape[0]
    y = torch.randint(-2, 3, (rows, columns), generator=generator).float()
    gate = torch.randint(-1, 2, (experts, columns), generator=generator).float()
    y *= (torch.arange(columns) + torch.arange(rows)[:, None]) % 37 == 0  # few terms: affinities that differ
    y[rows // 3, 0], y[rows // 2, columns - 1], y[rows - 2] = math.nan, math.inf, -math.inf
    held, w16 = y.to(torch.bfloat16).to(given.y.device), gate.to(torch.bfloat16).to(given.y.device)
    return replace(given, name=f"T={rows}, whole numbers, three rows not finite", y=held, gate=w16, exact=True)


def work_memory(device: torch.device) -> dict[str, torch.Tensor]:
    """Counters at zero, and memory for the parts of tiles that CTAs share."""
    return {
        "counters": torch.zeros(COUNTERS, dtype=torch.int32, device=device),
        "parts": torch.full(PARTS, math.nan, device=device),
    }


def as_case(given: GateInputs, dims: dict[str, int], generator: torch.Generator, *, halves: bool) -> Case:
    """The tokens and the gate of ``given`` with a table; ``halves``: its ids and the tokens' are those of i64."""
    k, rows = dims["k"], given.y.shape[0]
    wide, gate = given.y.double(), given.gate.double()
    logits = wide @ gate.T
    bound = tensor_core_error(wide.abs() @ gate.abs().T, dims["d"] // 16, MOST_PARTS)
    error = torch.zeros_like(logits) if given.exact else bound
    table, tokens, named = named_experts(rows, dims["E"], k, generator, given.y.device, halves=halves)
    return Case(
        op="router_hash_many",
        name=given.name,
        inputs={"y": given.y, "gate": given.gate, "tid2eid": table, "tokens": tokens, "factor": FACTOR},
        outputs={
            "experts": OutputLayout((rows, k), (k, 1), torch.int32),
            "weights": OutputLayout((rows, k), (k, 1), torch.float32),
        },
        expected=choice(logits, error, k=k, factor=FACTOR, bias=None, experts=named),
        inouts=work_memory(given.y.device),
    )


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    inputs = gate_inputs(dims["d"], dims["E"], generator, device)
    inputs += [several_tiles(inputs[-1], rows, generator) for rows in (129, 500)]
    return [as_case(given, dims, generator, halves=number % 2 == 1) for number, given in enumerate(inputs)]


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    return counters_at_rest(judge_choice(got, case.expected, FACTOR, named=True), got["counters"])


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong expert or else weight; a tile is 128 tokens."""
    place = first_wrong_place(got, case.expected, FACTOR, named=True)
    if place is None:
        return None
    token = place[1][0]
    return (*place, f"tile {token // 128} (128 tokens), row {token % 128} of it")


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    made = router_hash.workload(dims, variant, sizes, seed=seed, device=device)
    return {**made, **work_memory(device)}
