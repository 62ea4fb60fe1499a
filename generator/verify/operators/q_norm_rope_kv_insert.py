"""q_norm_rope_kv_insert: queries normalised and rotated, keys normalised, rotated and stored in rows of a pool.

The rule: q' and the rotary part of a stored row are bf16 numbers, at least 99.9 % of them the correctly rounded ones of
the float64 result, the rest one step off (further only where a rotation cancels, by what float32 leaves of it). The
codes of a row are at most one step off, at most 0.1 % of them; its scales are equal unless the block's largest
magnitude lies within two float32 units of where the scale doubles. All other bytes of the pool stay as they were. Keys
that norm and rotation leave as they are give the bytes of the reference's quantiser.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from dsv4.generator.verify import judging, quantized
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.pages import bytes_differ, judge_pages
from dsv4.generator.verify.rotary import ROTARY, gapped, table
from dsv4.generator.verify.unit_rows import unit_rows
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.pool import KV_WIDTH, Pool, PoolFormat, page_bytes
from dsv4.runtime.reference import pages
from dsv4.runtime.reference.q_norm import q_norm
from dsv4.runtime.reference.rms_norm import rms_norm
from dsv4.runtime.reference.rope import rotate

THOROUGH_CASES = (1, 4)
"""Five tokens, and the pages of five rows (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 4096, "N": 1024, "PB": 37440, "R": 65536}
BACKGROUND = 0xA5
"""What the pool's bytes are before: none of them may change outside the rows that are stored."""


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    heads = dims["H"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def add(
        name: str,
        tokens: int,
        *,
        q: torch.Tensor | None = None,
        kv: torch.Tensor | None = None,
        w: torch.Tensor | None = None,
        page: int = 64,
        skipped: tuple[int, ...] = (),
        gap: int = 0,
        eps: float = 1e-6,
        turned: bool = True,
        exact: bool = False,
    ) -> None:
        held_q = gapped(normal(tokens, heads, KV_WIDTH) if q is None else q, gap, device)
        held_kv = gapped(normal(tokens, KV_WIDTH) if kv is None else kv, gap, device)
        weight = (1 + 0.5 * normal(KV_WIDTH) if w is None else w).to(torch.bfloat16).to(device)
        angles = table(tokens, generator) if turned else table(1, generator).expand(tokens, -1)
        cos_sin = gapped(angles, 4 if gap else 0, device, dtype=torch.float32)
        pool = make_pool(variant, 2 * tokens + 3, page, device)
        rows = torch.randperm(pool.rows, generator=generator)[:tokens].to(device)
        rows[list(skipped)] = -1
        made.append(
            make_case(
                *(variant, name, held_q, held_kv, weight, cos_sin, pool, rows),
                eps=eps,
                out_gap=16 if gap else 0,
                exact=exact,
            )
        )

    few = max(1, 64 // heads)
    add("T=0", 0)
    add("T=1", 1)
    add("a handful of tokens, one not stored", 5, skipped=(2,))
    add("more tokens than CTAs have warps, none stored", 8 * few + 3, skipped=tuple(range(8 * few + 3)))
    add("inputs and outputs with gaps between heads and rows", 7, gap=8)
    add("pages of five rows, of which every third token is stored", 19, page=5, skipped=(0, 1, 3, 4, 6, 7))
    add("pages of one row", 6, page=1, skipped=(5,))
    scales = torch.logspace(-15, 12, 13)
    add(
        "tokens from 1e-15 to 1e12: another token's mean shows",
        13,
        q=normal(13, heads, KV_WIDTH) * scales[:, None, None] * torch.logspace(0, 5, heads)[:, None],
        kv=normal(13, KV_WIDTH) * scales[:, None],
    )
    add("weights from 1e-8 to 1e3: blocks at the least scale and at large ones", 11, w=torch.logspace(-8, 3, KV_WIDTH))
    add("eps counts", 3, q=normal(3, heads, KV_WIDTH) * 1e-3, kv=normal(3, KV_WIDTH) * 1e-3, eps=1e-5)
    add("all zeros", 2, q=torch.zeros(2, heads, KV_WIDTH), kv=torch.zeros(2, KV_WIDTH))
    spike = torch.full((8, KV_WIDTH), 1e-3)
    spike[torch.arange(8), torch.tensor([0, 63, 64, 255, 256, 447, 448, 511])] = 300.0
    add("one large number in a row: a column left out of a sum or an amax shows", 8, kv=spike)
    strange = normal(9, KV_WIDTH)
    strange[1, 3], strange[4, 500], strange[6, 100] = math.nan, math.inf, -math.inf
    odd = normal(9, heads, KV_WIDTH)
    odd[2, heads - 1, 0], odd[5, 0, 511] = math.nan, math.inf
    add("NaN and infinite rows between finite ones", 9, q=odd, kv=strange)
    own = unit_rows(5, generator)
    add(
        "keys that stay as they are: the pool's bytes are the quantiser's",
        5,
        kv=own,
        w=torch.ones(KV_WIDTH),
        eps=0.0,
        turned=False,
        exact=True,
    )
    return made


def make_case(
    variant: dict[str, Scalar],
    name: str,
    q: torch.Tensor,
    kv: torch.Tensor,
    w: torch.Tensor,
    cos_sin: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    *,
    eps: float,
    out_gap: int = 0,
    exact: bool = False,
) -> Case:
    eps32 = float(torch.tensor(eps, dtype=torch.float32))
    wide: dict[str, Any] = {"dtype": torch.float64, "out_dtype": torch.float64}
    keys = rotate(rms_norm(kv, w, eps32, **wide), cos_sin, **wide)
    written = Pool(pool.data.clone(), pool.format, pool.page)
    pages.write_rows(written, rows[rows >= 0], keys[rows >= 0])
    packed = pool.format is PoolFormat.KV_FP8
    data = pool.data if packed else pool.data.view(-1, KV_WIDTH)
    tokens, heads, width = q.shape
    return Case(
        op="q_norm_rope_kv_insert",
        name=name,
        inputs={"q": q, "kv": kv, "kv_norm": w, "cos_sin": cos_sin, "rows": rows, "page": pool.page, "eps": eps},
        outputs={
            "q_out": OutputLayout(
                (tokens, heads, width), (heads * (width + out_gap) + out_gap, width + out_gap, 1), torch.bfloat16
            )
        },
        expected={
            "q_out": rotate(q_norm(q, eps=eps32, **wide), cos_sin, **wide),
            "keys": keys,
            pool_name(variant): written.data if packed else written.data.view(-1, KV_WIDTH),
        },
        limits={"exact": float(exact)},
        inouts={pool_name(variant): data},
    )


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    """The module's rule; the figures are those of q'."""
    q_out, expected = got["q_out"], case.expected["q_out"]
    error = quantized.float32_error(expected, rotary=ROTARY)
    findings = judging.bf16_within("q_out", q_out, expected, error)
    name, page = pool_of(case)
    pool, before = as_pool(got[name], page), as_pool(case.inouts[name], page).data
    rows = case.inputs["rows"]
    assert isinstance(rows, torch.Tensor)
    findings += judge_pages(pool, before, rows, case.expected["keys"], name=name).findings
    if case.limits["exact"]:
        findings += bytes_differ(got[name], case.expected[name], name)
    return judging.verdict(q_out, expected, findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first number of q' that is not the expected one by more than a bf16 step, else the first such byte."""
    expected = case.expected["q_out"]
    size = quantized.float32_error(expected, rotary=ROTARY, relative=2.0**-7)
    places = (~((got["q_out"].to(torch.float64) - expected).abs() <= size) & expected.isfinite()).nonzero()
    warps = int(config.get("warps", 1))
    if len(places):
        token, head, column = places[0].tolist()
        number = (token * expected.shape[1] + head) // int(config.get("heads_per_warp", 1))
        return "q_out", (token, head, column), f"warp {number % warps} of query CTA {number // warps}"
    name, _ = pool_of(case)
    wrong = got[name] != case.expected[name]
    if got[name].is_floating_point():
        wrong &= ~(got[name].isnan() & case.expected[name].isnan())
    places = wrong.nonzero()
    if not len(places):
        return None
    row, column = places[0].tolist()
    return name, (row, column), "the pool's " + ("page" if name == "pool" else "row") + f" {row}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    """Random tokens at random rows of the pool; ``PB`` is the bytes of a page, of as many rows as fit."""
    tokens, heads = sizes["T"], dims["H"]
    generator = torch.Generator(device=device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.bfloat16}
    page = sizes["PB"] // 584
    values: dict[str, Value] = {
        "q": torch.randn(tokens, heads, KV_WIDTH, **options),
        "kv": torch.randn(tokens, KV_WIDTH, **options),
        "kv_norm": torch.randn(KV_WIDTH, **options),
        "cos_sin": table(tokens, generator),
        "page": page,
        "eps": 1e-6,
        "q_out": torch.empty(tokens, heads, KV_WIDTH, device=device, dtype=torch.bfloat16),
    }
    packed = variant["cache"] == "kv_fp8"
    if packed:
        values["pool"] = torch.zeros(sizes["N"], sizes["PB"], device=device, dtype=torch.uint8)
    else:
        values["plain_pool"] = torch.zeros(sizes["R"], KV_WIDTH, device=device, dtype=torch.bfloat16)
    count = sizes["N"] * page if packed else sizes["R"]
    rows = torch.randperm(count, generator=generator, device=device)[:tokens]
    values["rows"] = torch.nn.functional.pad(rows, (0, tokens - len(rows)), value=-1)
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def make_pool(variant: dict[str, Scalar], rows: int, page: int, device: torch.device) -> Pool:
    """A pool of at least ``rows`` rows, full of a byte that nobody writes by accident."""
    count = -(-rows // page) + 1
    if variant["cache"] == "kv_fp8":
        data = torch.full((count, page_bytes(PoolFormat.KV_FP8, page)), BACKGROUND, dtype=torch.uint8, device=device)
        return Pool(data, PoolFormat.KV_FP8, page)
    data = torch.full((count, page, 2 * KV_WIDTH), BACKGROUND, dtype=torch.uint8, device=device)
    return Pool(data.view(torch.bfloat16), PoolFormat.PLAIN, page)


def pool_name(variant: dict[str, Scalar]) -> str:
    return "pool" if variant["cache"] == "kv_fp8" else "plain_pool"


def pool_of(case: Case) -> tuple[str, int]:
    """The name of the pool that the case changes, and the rows of its pages."""
    (name,) = case.inouts
    page = case.inputs["page"]
    assert isinstance(page, int)
    return name, page


def as_pool(data: torch.Tensor, page: int) -> Pool:
    if data.dtype == torch.uint8:
        return Pool(data, PoolFormat.KV_FP8, page)
    return Pool(data.view(-1, page, KV_WIDTH), PoolFormat.PLAIN, page)
