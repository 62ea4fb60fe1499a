"""indexer_q: the indexer's queries rotated, transformed and quantised, the weights folded.

The rule: at most one code step on at most 0.1 % of the codes, scales equal unless the block's largest magnitude lies
within 2^-20 of where the scale doubles: a transformed number is a sum of 128, of which float32 rounds every step of the
tree. Without codes the same for bf16 steps, further only where the sum cancels: by 2^-21 of the row's length. Folded
weights are the float32 product with the factor, rounded once, times the scale that the kernel wrote, which is exact.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, quantized
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.rotary import gapped, table
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import codes as number_codes
from dsv4.runtime.reference.indexer_q import indexer_q

WIDTH = 128
BLOCKS = {"fp8": 1, "fp4": 4}
AMAX_ERROR = 2.0**-20
SUM_ERROR = 2.0**-21
"""Of a transformed number, as a part of the length of its row."""
THOROUGH_CASES = (1, 4)
"""Five tokens, and seven with gaps (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 4096}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    heads = dims["H"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    factor = (WIDTH * heads) ** -0.5
    made: list[Case] = []

    def normal(tokens: int) -> torch.Tensor:
        return torch.randn(tokens, heads, WIDTH, generator=generator)

    def add(name: str, values: torch.Tensor, *, gap: int = 0) -> None:
        tokens = values.shape[0]
        held = gapped(values, gap, device)
        cos_sin = gapped(table(tokens, generator), 4 if gap else 0, device, dtype=torch.float32)
        inputs: dict[str, Value] = {"q": held, "cos_sin": cos_sin, "factor": factor}
        if variant["fold"] != "none":
            dtype = torch.float32 if variant["fold"] == "f32" else torch.bfloat16
            weights = torch.randn(tokens, heads, generator=generator) * torch.logspace(-6, 6, heads)
            inputs[weights_name(variant)] = gapped(weights, 3 if gap else 0, device, dtype=dtype)
        wide = indexer_q(held, cos_sin, rotate_hadamard=True, dtype=torch.float64, out_dtype=torch.float64)
        assert isinstance(wide, torch.Tensor)
        outputs = output_layouts(dims, variant, tokens)
        expected = {"rotated": wide}
        if variant["code"] == "fp8":
            expected = {"codes": wide}
        elif variant["code"] == "fp4":
            expected = {"packed": wide}
        made.append(Case(op="indexer_q", name=name, inputs=inputs, outputs=outputs, expected=expected))

    add("T=0", normal(0))
    add("T=1", normal(1))
    add("T=5", normal(5))
    add("more tokens", normal(67 if heads <= 16 else 11))
    add("T=2", normal(2))
    add("gaps between heads and rows", normal(7), gap=8)
    magnitudes = torch.logspace(-12, 4, heads)[:, None] * torch.logspace(-2, 2, 9)[:, None, None]
    add("heads and tokens of all magnitudes", normal(9) * magnitudes)
    add("columns of all magnitudes: a column in another's place shows", normal(6) * torch.logspace(-3, 3, WIDTH))
    spikes = torch.full((8, heads, WIDTH), 1e-4)
    for token, column in enumerate((0, 1, 7, 8, 63, 64, 100, 127)):
        spikes[token, :, column] = 3.0 * 2.0**token
    add("one large number in a head: its pattern of signs is a column of H", spikes)
    add(
        "the first token is constant and not rotated: all but one transformed number are 0", torch.ones(1, heads, WIDTH)
    )
    add("all zeros", torch.zeros(3, heads, WIDTH))
    strange = normal(9)
    strange[1, 0, 3], strange[4, heads - 1, 100], strange[6, heads // 2, 20] = math.nan, math.inf, -math.inf
    add("NaN and infinities: only their head is spoilt", strange)
    return made


def output_layouts(dims: dict[str, int], variant: dict[str, Scalar], tokens: int) -> dict[str, OutputLayout]:
    heads, code = dims["H"], str(variant["code"])

    def compact(columns: int, dtype: torch.dtype) -> OutputLayout:
        return OutputLayout((tokens, heads, columns), (heads * columns, columns, 1), dtype)

    made = {"rotated": compact(WIDTH, torch.bfloat16)}
    if code == "fp8":
        made = {"codes": compact(WIDTH, torch.float8_e4m3fn), "scale": compact(1, torch.float8_e8m0fnu)}
    elif code == "fp4":
        made = {"packed": compact(WIDTH // 2, torch.uint8), "scale": compact(4, torch.float8_e8m0fnu)}
    if variant["fold"] != "none":
        made["folded"] = OutputLayout((tokens, heads), (heads, 1), torch.float32)
    return made


def weights_name(variant: dict[str, Scalar]) -> str:
    return "weights" if variant["fold"] == "f32" else "weights_bf16"


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    """The module's rule; the figures are those of the numbers, or of codes · scales."""
    ((name, values),) = case.expected.items()
    if name == "rotated":
        error = SUM_ERROR * values.norm(dim=-1, keepdim=True).expand_as(values)
        findings = judging.bf16_within(name, got[name], values, error)
        findings += _fold_findings(got, case, None)
        return judging.verdict(got[name], values, findings)
    code = "e4m3" if name == "codes" else "e2m1"
    scale = got["scale"].view(torch.uint8).to(torch.int32)
    blocks = values.unflatten(-1, (scale.shape[-1], -1))
    low, high = quantized.scale_range(blocks, code, error=AMAX_ERROR)
    findings = quantized.scale_findings("scale", scale, low, high)
    size = quantized.scale_values(scale)
    codes = unpacked(got[name]).view(blocks.shape)
    findings += quantized.step_findings(name, quantized.code_steps(codes, blocks, size, code), "code")
    findings += _fold_findings(got, case, size[..., 0] if name == "codes" else None)
    known = values.masked_fill(~values.isfinite().all(dim=-1, keepdim=True), math.nan)
    return judging.verdict(said(got[name], got["scale"]), known, findings)


def _fold_findings(got: dict[str, torch.Tensor], case: Case, size: torch.Tensor | None) -> list[str]:
    """``size`` float64 [T, H]: the scales of queries that have one, else ``None``."""
    if "folded" not in got:
        return []
    weights, factor = case.inputs.get("weights", case.inputs.get("weights_bf16")), case.inputs["factor"]
    assert isinstance(weights, torch.Tensor) and isinstance(factor, float)
    expected = weights.to(torch.float64) * float(torch.tensor(factor, dtype=torch.float32))
    if size is not None:
        expected = expected * size
    return judging.f32_within("folded", got["folded"], expected, expected.abs() * 2.0**-23 + 2.0**-149)


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    """Codes [T, H, 128] as integers, of E4M3 codes or of packed E2M1 ones."""
    if codes.dtype == torch.uint8:
        return torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
    return codes.contiguous().view(torch.uint8)


def said(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Codes · scales in float64, [T, H, 128]."""
    size = quantized.scale_values(scale.contiguous().view(torch.uint8))
    wide = codes.to(torch.float64)
    if codes.dtype == torch.uint8:
        wide = number_codes.unpack_e2m1(codes, dtype=torch.float64)
    return wide * size.repeat_interleave(WIDTH // size.shape[-1], dim=-1)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first number that is off by more than its format can be (of packed codes the byte that holds it)."""
    ((name, values),) = case.expected.items()
    if name == "rotated":
        wide, allowed = got[name].to(torch.float64), 2.0**-7 * values.norm(dim=-1, keepdim=True)
    else:
        wide = said(got[name], got["scale"])
        largest = wide.abs().unflatten(-1, (got["scale"].shape[-1], -1)).amax(dim=-1, keepdim=True)
        allowed = (largest * (2.0**-4 if name == "codes" else 0.25)).expand_as(
            values.unflatten(-1, (got["scale"].shape[-1], -1))
        )
        allowed = allowed.flatten(-2)
    places = (~((wide - values).abs() <= allowed) & values.isfinite()).nonzero()
    if not len(places):
        return None
    token, head, column = places[0].tolist()
    number = token * values.shape[1] + head
    warps = int(config.get("warps", 1))
    per_cta = 4 * warps * int(config.get("heads_per_lane", 1))
    where = f"quarter {number % 4} of warp {number % (4 * warps) // 4} of CTA {number // per_cta}"
    return name, (token, head, column // 2 if name == "packed" else column), where


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    tokens, heads = sizes["T"], dims["H"]
    generator = torch.Generator(device=device).manual_seed(seed)
    values: dict[str, Value] = {
        "q": torch.randn(tokens, heads, WIDTH, generator=generator, device=device, dtype=torch.bfloat16),
        "cos_sin": table(tokens, generator),
        "factor": (WIDTH * heads) ** -0.5,
    }
    if variant["fold"] != "none":
        weights = torch.randn(tokens, heads, generator=generator, device=device)
        values[weights_name(variant)] = weights if variant["fold"] == "f32" else weights.to(torch.bfloat16)
    for name, layout in output_layouts(dims, variant, tokens).items():
        values[name] = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device=device)
    return values
