"""router_choose: the choice of experts from logits, judged by generator/verify/routing.py's rule.

Of S parts of a logit a float32 sum may be off (S − 1) · 2^-24 · Σ|parts|; parts that are small whole numbers leave no
room.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.routing import choice, first_wrong_place, judge_choice
from dsv4.generator.verify.routing_cases import named_experts
from dsv4.runtime.artifact import Scalar

FACTOR = 2.5

THOROUGH_CASES = (1, 2)
"""Seven tokens of ties, nineteen in three parts (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"S": 1, "T": 8192, "V": 129280}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    experts, k = dims["E"], dims["k"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []
    bias = 0.3 * torch.randn(experts, generator=generator)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    def whole(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high + 1, size, generator=generator).float()

    def add(name: str, parts: torch.Tensor, b: torch.Tensor = bias, *, exact: bool = False) -> None:
        splits, rows, _ = parts.shape
        held = parts.to(device)
        logits = held.double().sum(dim=0)
        error = (splits - 1) * 2.0**-24 * held.double().abs().sum(dim=0)
        inputs: dict[str, Value] = {"logits": held, "factor": FACTOR}
        given = None
        if variant["hash"]:
            halves = len(made) % 2 == 1
            inputs["tid2eid"], inputs["tokens"], given = named_experts(
                rows, experts, k, generator, device, halves=halves
            )
        else:
            inputs["bias"] = b.to(device)
        if exact or splits == 1:
            error = torch.zeros_like(error)
        found = choice(logits, error, k=k, factor=FACTOR, bias=None if variant["hash"] else b.to(device), experts=given)
        shape = {"experts": torch.int32, "weights": torch.float32}
        outputs = {each: OutputLayout((rows, k), (k, 1), dtype) for each, dtype in shape.items()}
        made.append(Case("router_choose", name, inputs, outputs, expected=found))

    none = torch.zeros(experts)
    add("T=0", normal(1, 0, experts))
    add("T=1, normal", normal(1, 1, experts))
    add("T=7, whole numbers: many equal scores", whole(-2, 2, 1, 7, experts), none, exact=True)
    add("T=19 in three parts, whole numbers with a bias", whole(-3, 3, 3, 19, experts), exact=True)
    add("T=64 in eight parts, normal", normal(8, 64, experts))
    add("T=333, normal", normal(1, 333, experts) * 3)
    add("all equal", torch.full((1, 3, experts), -1.0), none, exact=True)
    add("T=37, logits from 1e-6 to 1e3", normal(1, 37, experts) * torch.logspace(-6, 3, 37)[:, None])
    ends = torch.zeros(experts)
    ends[0], ends[experts - 1] = 100.0, 90.0
    add("T=3, the bias prefers the first and the last expert", normal(1, 3, experts), ends)
    add("T=5, a bias below every score", normal(1, 5, experts), -50.0 - torch.arange(experts) * 0.25)
    strange = normal(1, 9, experts)
    strange[0, 2, 0], strange[0, 5, experts - 1], strange[0, 6] = math.nan, math.inf, math.nan
    strange[0, 8] = -math.inf
    add("T=9, NaN and infinite tokens between finite ones", strange)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    return judge_choice(got, case.expected, FACTOR, named="tokens" in case.inputs)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong expert or else weight; a tile is a CTA's tokens."""
    place = first_wrong_place(got, case.expected, FACTOR, named="tokens" in case.inputs)
    if place is None:
        return None
    name, index = place
    tokens = int(config.get("warps", 1))
    return name, index, f"tile {index[0] // tokens} ({tokens} tokens a CTA), token {index[0] % tokens} of it"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, experts, k = sizes["T"], dims["E"], dims["k"]
    values: dict[str, Value] = {
        "logits": torch.randn(sizes["S"], rows, experts, generator=generator, device=device),
        "factor": FACTOR,
        "experts": torch.empty(rows, k, dtype=torch.int32, device=device),
        "weights": torch.empty(rows, k, device=device),
    }
    if variant["hash"]:
        first = torch.randint(0, experts, (sizes["V"], 1), generator=generator, device=device)
        step = torch.arange(k, device=device) * (experts // k)
        values["tid2eid"] = ((first + step) % experts).to(torch.int32)
        values["tokens"] = torch.randint(0, sizes["V"], (rows,), generator=generator, device=device).to(torch.int32)
    else:
        values["bias"] = torch.randn(experts, generator=generator, device=device) * 0.1
    return values
