"""router_logits_many: router_logits' task, cases and judge, and a case of several tiles of 128 tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from dsv4.generator.verify.case import Case, Verdict
from dsv4.generator.verify.operators import router_logits
from dsv4.runtime.artifact import Scalar

THOROUGH_CASES = router_logits.THOROUGH_CASES
WORKLOAD_SIZES = router_logits.WORKLOAD_SIZES
workload = router_logits.workload


def several_tiles(
    dims: dict[str, int], rows: int, splits: int, generator: torch.Generator, device: torch.device
) -> Case:
    """So many tokens of small whole numbers that differ in every row, NaN and infinity in some."""
    y = torch.randint(-2, 3, (rows, dims["d"]), generator=generator).float()
    gate = torch.randint(-2, 3, (dims["E"], dims["d"]), generator=generator)
    y[rows // 3, 0], y[rows // 2, -1], y[rows - 2] = math.nan, math.inf, -math.inf
    name = f"T={rows}, whole numbers, three rows not finite"
    y16, gate16 = (each.to(torch.bfloat16).to(device) for each in (y, gate))
    return router_logits.as_case(name, y16, gate16, min(splits, dims["d"] // router_logits.SLICE), exact=True)


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    made = router_logits.cases(dims, variant, config=config, seed=seed, device=device)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made.append(several_tiles(dims, 300, 3, generator, device))
    return [replace(case, op="router_logits_many") for case in made]


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    return router_logits.judge(got, case)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element that is too far off; a tile is 128 tokens."""
    found = router_logits.first_wrong(got, case, {"tile_n": got["logits"].shape[-1]})
    if found is None:
        return None
    name, (split, token, expert), _ = found
    return name, (split, token, expert), f"tile {token // 128} of part {split} (128 tokens), row {token % 128} of it"
