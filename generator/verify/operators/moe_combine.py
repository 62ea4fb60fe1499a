"""moe_combine: the sum, judged element by element.

A kernel adds k + 1 numbers in float32, k additions each off by at most 2^-24 of a partial sum, and rounds once: every
element is the bf16 of a number within k · 2^-24 · Σ|term| of the float64 sum, and 99.9 % are the correctly rounded ones
(dsv4-reference §9.2).
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar

THOROUGH_CASES = (1, 3)
"""Seven tokens, and rows that lie apart (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192, "S": 49152}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, routes, gathered = dims["d"], dims["k"], bool(variant["gathered"])
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, columns, generator=generator)

    def add(name: str, routed: torch.Tensor, shared: torch.Tensor, *, absent: float = 0.2, gap: int = 0) -> None:
        """``routed`` [T, k, d]; gathered, they lie in another order among rows of NaN, some of them left out."""
        tokens = shared.shape[0]
        routed, shared = routed.to(torch.bfloat16), shared.to(torch.bfloat16)
        taken = (
            torch.rand(tokens, routes, generator=generator) >= absent if gathered else torch.ones(tokens, routes) > 0
        )
        terms = torch.where(taken[..., None], routed, 0.0).double()
        inputs: dict[str, Value] = {"shared": _apart(shared, gap).to(device)[..., :columns]}
        if gathered:
            count = tokens * routes + 3
            places = torch.randperm(count, generator=generator)[: tokens * routes].view(tokens, routes)
            rows = torch.full((count, columns), math.nan, dtype=torch.bfloat16)
            rows[places[taken]] = routed[taken]
            inputs["rows"] = _apart(rows, gap).to(device)[..., :columns]
            inputs["index"] = torch.where(taken, places, -1).to(torch.int32).to(device)
        else:
            inputs["routed"] = _apart(routed, gap).to(device)[..., :columns]
        expected = {
            "out": (terms.sum(1) + shared.double()).to(device),
            "size": (terms.abs().sum(1) + shared.double().abs()).to(device),
        }
        outputs = {"out": OutputLayout((tokens, columns), (columns + gap, 1), torch.bfloat16)}
        made.append(Case("moe_combine", name, inputs, outputs, expected, limits={"additions": float(routes)}))

    for tokens in (0, 1, 7, 64, 133):
        add(f"T={tokens}, normal", normal(tokens, routes), normal(tokens))
    add("rows lie apart", normal(9, routes), normal(9), gap=24)
    sizes = torch.logspace(-20, 20, 19)
    add("tokens from 1e-20 to 1e20", normal(19, routes) * sizes[:, None, None], normal(19) * sizes[:, None])
    powers = torch.exp2(-3.0 * torch.arange(routes))
    add("each route an eighth of the one before", normal(11, routes) * powers[:, None], normal(11) * 2.0**-9)
    add("no route at all", normal(5, routes), normal(5), absent=1.0)
    opposite = normal(5, routes)
    opposite[:, 1::2] = -opposite[:, 0::2][:, : routes // 2]
    add("routes that cancel", opposite, normal(5) * 2.0**-12, absent=0.0)
    routed, shared = normal(13, routes), normal(13)
    routed[2, routes - 1, 0], shared[5, columns - 1], routed[6, 0] = math.nan, math.inf, -math.inf
    shared[11] = math.nan
    add("NaN and infinite rows between finite ones", routed, shared, absent=0.0)
    return made


def _apart(tensor: torch.Tensor, gap: int) -> torch.Tensor:
    """The same with ``gap`` elements of NaN after each row."""
    return torch.nn.functional.pad(tensor, (0, gap), value=math.nan)


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    out, expected = got["out"].contiguous(), case.expected["out"]
    error = case.limits["additions"] * 2.0**-24 * case.expected["size"]
    return judging.verdict(out, expected, judging.bf16_within("out", out, expected, error))


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element far off, else the first more than a bf16 step off; a tile is a CTA's part of a token."""
    out, expected = got["out"].contiguous(), case.expected["out"]
    apart = metrics.bf16_ulps_apart(out, metrics.round_to_bf16(expected))
    off = (out.double() - expected).abs() > 2.0**-7 * case.expected["size"]
    places = (apart > 1).nonzero() if not off.any() else off.nonzero()
    if not len(places):
        return None
    token, column = places[0].tolist()
    parts = int(config.get("row_parts", 1))
    return "out", (token, column), f"tile {column // (expected.shape[1] // parts)} of {parts} of token {token}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens, routes, columns = sizes["T"], dims["k"], dims["d"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, columns, generator=generator, device=device, dtype=torch.bfloat16)

    made: dict[str, Value] = {"shared": normal(tokens), "out": torch.empty(tokens, columns, device=device).bfloat16()}
    if not variant["gathered"]:
        return {**made, "routed": normal(tokens, routes)}
    rows = sizes.get("S", tokens * routes)
    index = torch.randint(rows, (tokens, routes), generator=generator, device=device, dtype=torch.int32)
    return {**made, "rows": normal(rows), "index": index}
