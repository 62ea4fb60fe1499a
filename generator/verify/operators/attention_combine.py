"""attention_combine: the merged rows and their log-sum-exp, judged element by element.

A kernel's weights are off by the error of 2^x and of the exponent (|lse| · 2^-23, log2(e) times), its sum by P · 2^-24
and its reciprocal by 2^-23; it rounds once. So every element is the bf16 of a number within those shares of Σ|term| of
the float64 result, and 99.9 % are the correctly rounded ones, but where the exponents are large. A part without keys
(lse −∞ or +∞) counts nothing, whatever its values; where none has keys, out is 0 and lse −∞ (dsv4-reference §7.2).
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference.attention_combine import attention_combine

EXP2_ERROR = 2.0**-21
"""Of a weight: 2^x to two units of float32, its exponent apart; and of the reciprocal."""

THOROUGH_CASES = (1, 3)
"""Three parts, and rows that lie apart (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"P": 8, "T": 64, "H": 64}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, dtype = dims["D"], {"f32": torch.float32, "bf16": torch.bfloat16}[str(variant["parts_dtype"])]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def add(
        name: str, parts: int, tokens: int, heads: int, *, lses: torch.Tensor | None = None, gap: int = 0,
        sink: torch.Tensor | None = None, values: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        shape = (parts, tokens, heads)
        wide = torch.randn(*shape, columns, generator=generator) if values is None else values
        wide = torch.nn.functional.pad(wide.to(dtype), (0, gap), value=math.nan).to(device)[..., :columns]
        own_lses = torch.randn(*shape, generator=generator) * 3 if lses is None else lses.expand(shape).contiguous()
        own_lses = torch.nn.functional.pad(own_lses, (0, gap), value=math.nan).to(device)[..., :heads]
        drawn = torch.randn(heads, generator=generator) * 2 if sink is None else sink
        own_sink = drawn.to(device) if variant["has_sink"] else None
        out, lse = attention_combine(wide, own_lses, own_sink, dtype=torch.float64, out_dtype=torch.float64)
        size, _ = attention_combine(wide.abs(), own_lses, own_sink, dtype=torch.float64, out_dtype=torch.float64)
        exponent = torch.where(own_lses.isfinite(), own_lses.double().abs(), 0.0)
        exponent = exponent.amax(0) if parts else torch.zeros(tokens, heads, device=device, dtype=torch.float64)
        error = (EXP2_ERROR + parts * 2.0**-24 + exponent * 2.0**-21)[..., None] * size
        head = columns + gap
        outputs = {
            "out": OutputLayout((tokens, heads, columns), (heads * head + 2 * gap, head, 1), torch.bfloat16),
            "lse": OutputLayout((tokens, heads), (heads + gap, 1), torch.float32),
        }
        expected = {"out": out, "lse": lse, "error": error}
        inputs: dict[str, Value] = {"parts": wide, "part_lse": own_lses, "sink": own_sink}
        made.append(Case("attention_combine", name, inputs, outputs, expected))

    add("no token", 2, 0, 3)
    add("one part", 1, 3, 2)
    add("three parts", 3, 5, 3)
    add("more parts than lanes", 70, 2, 3)
    add("rows lie apart", 4, 3, 5, gap=8)
    holes = torch.randn(5, 4, 3, generator=generator)
    holes[0], holes[1, 1], holes[2, 2], holes[:, 3] = -math.inf, math.inf, -math.inf, math.inf
    spoilt = torch.randn(5, 4, 3, columns, generator=generator)
    spoilt[holes.isinf()] = math.nan
    add("parts without keys, full of NaN; a token without any", 5, 4, 3, lses=holes, values=spoilt)
    add("parts of very different weight", 6, 3, 2, lses=torch.tensor([-80.0, 3, -20, 88, 0, 87])[:, None, None])
    add("sinks that take all and nothing", 2, 2, 4, sink=torch.tensor([math.inf, -math.inf, 40.0, -40.0]))
    values = torch.randn(3, 4, 2, columns, generator=generator)
    values[1, 2, 0, 5], values[2, 3, 1, 0] = math.nan, math.inf
    add("NaN and infinity stay in their row", 3, 4, 2, values=values)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    out, expected = got["out"].contiguous(), case.expected["out"]
    lse, expected_lse = got["lse"], case.expected["lse"]
    share = 1e-3 if float(case.expected["error"].max() if out.numel() else 0.0) < 2.0**-16 else 0.05
    findings = judging.bf16_within("out", out, expected, case.expected["error"], inexact_share=share)
    findings += judging.f32_within("lse", lse, expected_lse, 2.0**-20 + 2.0**-22 * expected_lse.abs())
    return judging.verdict(out, expected, findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element of out that is more than a bf16 step off; a tile is a CTA's rows."""
    apart = metrics.bf16_ulps_apart(got["out"].contiguous(), metrics.round_to_bf16(case.expected["out"]))
    places = (apart > 1).nonzero()
    if not len(places):
        return None
    token, head, column = places[0].tolist()
    row = token * case.expected["out"].shape[1] + head
    warps = int(config.get("warps", 1))
    return "out", (token, head, column), f"warp {row % warps} of CTA {row // warps}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    parts, tokens, heads = (sizes[name] for name in ("P", "T", "H"))
    dtype = torch.float32 if variant["parts_dtype"] == "f32" else torch.bfloat16
    shape = (parts, tokens, heads)
    return {
        "parts": torch.randn(*shape, dims["D"], generator=generator, device=device, dtype=dtype),
        "part_lse": torch.randn(*shape, generator=generator, device=device),
        "sink": torch.randn(heads, generator=generator, device=device) if variant["has_sink"] else None,
        "out": torch.empty(tokens, heads, dims["D"], device=device, dtype=torch.bfloat16),
        "lse": torch.empty(tokens, heads, device=device),
    }
