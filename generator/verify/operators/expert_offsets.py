"""expert_offsets: counts, offsets and both directions of the permutation, equal to the reference element by element."""

from __future__ import annotations

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.judging import verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import expert_offsets as reference

CTA_ROUTES = 4096
NAMES = ("counts", "offsets", "route_row", "row_token")

THOROUGH_CASES = (1, 5)
"""Seven tokens, and more than one CTA (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    count, k, align = dims["E"], dims["k"], dims["align_m"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def distinct(tokens: int) -> torch.Tensor:
        return torch.rand(tokens, count, generator=generator).argsort(dim=1)[:, :k]

    def add(name: str, experts: torch.Tensor) -> None:
        held = experts.to(torch.int32).contiguous().to(device)
        found = reference.expert_offsets(held, count=count, align=align)._asdict()
        outputs = {}
        for each, value in found.items():
            strides = (k, 1) if value.dim() == 2 else (1,)
            outputs[each] = OutputLayout(tuple(value.shape), strides, torch.int32)
        ctas = -(-held.numel() // CTA_ROUTES)
        counts = torch.zeros(ctas, count, dtype=torch.int32, device=device)
        made.append(Case("expert_offsets", name, {"experts": held}, outputs, found, inouts={"cta_counts": counts}))

    add("T=0", distinct(0))
    add("T=1", distinct(1))
    add("T=7", distinct(7))
    add("T=64", distinct(64))
    skipped = distinct(333)
    skipped[torch.rand(skipped.shape, generator=generator) < 0.3] = -1
    add("T=333, some routes are none", skipped)
    add("T=45, all tokens choose the same experts, the last ones", torch.arange(count - k, count).expand(45, k))
    add("two CTAs, the second all but empty", distinct(CTA_ROUTES // k + 2))
    add("three CTAs", distinct(2 * CTA_ROUTES // k + 100))
    add("no route at all", torch.full((5, k), -1))
    few = distinct(59)
    few[torch.rand(few.shape, generator=generator) < 0.3] = -1
    add("T=59, some routes are none", few)
    add("T=8193: more than one launch", distinct(8193))
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    findings = []
    for name in NAMES:
        wrong = got[name] != case.expected[name]
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            findings.append(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {place}: "
                f"{int(got[name][tuple(place)])} instead of {int(case.expected[name][tuple(place)])}"
            )
    return verdict(got["row_token"].double(), case.expected["row_token"].double(), findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong element of the first output that has one; a tile is a CTA's routes."""
    for name in NAMES:
        wrong = got[name] != case.expected[name]
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            tile = f"route {place[0] * wrong.shape[-1] + place[1]}" if name == "route_row" else f"entry {place[0]}"
            return name, place, tile
    return None


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens, count, k, align = sizes["T"], dims["E"], dims["k"], dims["align_m"]
    experts = torch.rand(tokens, count, generator=generator, device=device).argsort(dim=1)[:, :k].to(torch.int32)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    return {
        "experts": experts.contiguous(),
        "counts": empty(count),
        "offsets": empty(count + 1),
        "route_row": empty(tokens, k),
        "row_token": empty(reference.padded_rows(tokens, k, count, align)),
        "cta_counts": empty(-(-tokens * k // CTA_ROUTES), count),
    }
