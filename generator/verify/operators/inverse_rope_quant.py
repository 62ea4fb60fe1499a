"""inverse_rope_quant: attention output turned back by the position, in groups, plain or quantised.

The rule: numbers that are not rotated are the input's, bit for bit; rotated ones are at least 99.9 % the correctly
rounded bf16 of the float64 result and the rest one step off (further only where the rotation cancels). Quantised,
blocks of 128 columns without rotary ones have exactly the codes and the scale of the definition, which float32
computes without an error. Of the others at most 0.1 % of the codes, only rotary ones, are one step off, and the scale
is equal unless the block's largest magnitude lies within two float32 units of where it doubles. Scales of tokens past
the last are zeros.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, quantized
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.rotary import ROTARY, gapped, table
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference.inverse_rope_quant import FLOOR, inverse_rope_quant

WIDTH, BLOCK = 512, 128
KEPT = WIDTH // BLOCK - 1
"""Blocks of a head that have no rotary columns; the last one has."""
THOROUGH_CASES = (1, 4)
"""Five tokens, and seven in buffers with gaps (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 4096, "TP": 4096}
SCALES = {"row_major": "scale", "m_major_f32": "scale_f32", "m_major_packed": "scale_i32"}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    heads = dims["H"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def normal(tokens: int) -> torch.Tensor:
        return torch.randn(tokens, heads, WIDTH, generator=generator)

    def add(name: str, values: torch.Tensor, *, gap: int = 0) -> None:
        tokens = values.shape[0]
        held = gapped(values, gap, device)
        cos_sin = gapped(table(tokens, generator), 4 if gap else 0, device, dtype=torch.float32)
        wide = inverse_rope_quant(held, cos_sin, groups=dims["G"], dtype=torch.float64, out_dtype=torch.float64)
        assert isinstance(wide, torch.Tensor)
        layouts = output_layouts(dims, variant, tokens, gap=2 * gap)
        made.append(
            Case(
                op="inverse_rope_quant",
                name=name,
                inputs={"attention": held, "cos_sin": cos_sin},
                outputs=layouts,
                expected={"grouped" if variant["output"] == "bf16" else "codes": wide},
            )
        )

    add("T=0", normal(0))
    add("T=1", normal(1))
    add("T=5: three tokens of padding in transposed scales", normal(5))
    add("T=8: no padding", normal(8))
    add("more tokens", normal(133 if heads <= 8 else 14))
    add("gaps between heads, rows and groups", normal(7), gap=8)
    magnitudes = torch.logspace(-14, 5, heads)[:, None] * torch.logspace(-3, 2, 11)[:, None, None]
    add("heads and tokens of all magnitudes, down to the least scale", normal(11) * magnitudes)
    add("all zeros", torch.zeros(2, heads, WIDTH))
    spikes = torch.full((8, heads, WIDTH), 1e-3)
    for token, column in enumerate((0, 127, 128, 300, 383, 384, 448, 511)):
        spikes[token, :, column] = 448.0 * 2.0**token  # its scale is a power of two exactly
    add("one large number in a head, on the edge of a scale", spikes)
    strange = normal(9)
    strange[1, 0, 3], strange[4, heads - 1, 500], strange[6, heads // 2, 200] = math.nan, math.inf, -math.inf
    add("NaN and infinities: only their block is spoilt", strange)
    return made


def output_layouts(
    dims: dict[str, int], variant: dict[str, Scalar], tokens: int, *, gap: int = 0
) -> dict[str, OutputLayout]:
    """Where the outputs lie: a token's groups side by side, or with transposed scales a group's tokens."""
    groups, width = dims["G"], dims["H"] // dims["G"] * WIDTH
    shape, row = (tokens, groups, width), width + gap
    if variant["output"] == "bf16":
        return {"grouped": OutputLayout(shape, (groups * row + gap, row, 1), torch.bfloat16)}
    layout, blocks = str(variant["scale_layout"]), width // BLOCK
    padded = -(-tokens // 4) * 4
    if layout == "row_major":
        scale = OutputLayout((tokens, groups, blocks), (groups * blocks, blocks, 1), torch.float8_e8m0fnu)
        strides = (groups * row + gap, row, 1)
    elif layout == "m_major_f32":
        scale = OutputLayout((groups, blocks, padded), (blocks * padded, padded, 1), torch.float32)
        strides = (row, tokens * row + gap, 1)
    else:
        scale = OutputLayout((groups, blocks // 4, padded), (blocks // 4 * padded, padded, 1), torch.int32)
        strides = (row, tokens * row + gap, 1)
    return {"codes": OutputLayout(shape, strides, torch.float8_e4m3fn), SCALES[layout]: scale}


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    """The module's rule; the figures are those of the numbers, or of codes · scales."""
    if "grouped" in got:
        y, expected = got["grouped"], case.expected["grouped"]
        return judging.verdict(y, expected, _plain_findings(y, expected, case))
    tokens, groups, width = case.expected["codes"].shape
    values = case.expected["codes"].view(tokens, groups, -1, KEPT + 1, BLOCK)
    (name,) = set(got) - {"codes"}
    scale, findings = scale_codes(name, got[name], tokens)
    scale = scale.view(tokens, groups, -1, KEPT + 1)
    codes = got["codes"].contiguous().view(torch.uint8).view(values.shape)
    low, high = quantized.scale_range(values, "e4m3", floor=FLOOR)
    exact, _ = quantized.scale_range(values, "e4m3", floor=FLOOR, error=0.0)
    kept, turned = (..., slice(KEPT)), (..., slice(KEPT, None))
    findings += quantized.scale_findings(f"{name}, not rotated", scale[kept], exact[kept], exact[kept])
    findings += quantized.scale_findings(f"{name}, rotated", scale[turned], low[turned], high[turned])
    steps = quantized.code_steps(codes, values, quantized.scale_values(scale), "e4m3")
    steps[..., :KEPT, :] *= 2  # where a single step is wrong
    steps[..., KEPT, :-ROTARY] *= 2
    findings += quantized.step_findings("codes", steps, "code")
    said = codes.view(torch.float8_e4m3fn).to(torch.float64) * quantized.scale_values(scale)[..., None]
    known = values.masked_fill(~values.isfinite().all(dim=-1, keepdim=True), math.nan)  # a spoilt block says nothing
    return judging.verdict(said.view(tokens, groups, width), known.view(tokens, groups, width), findings)


def _plain_findings(y: torch.Tensor, expected: torch.Tensor, case: Case) -> list[str]:
    source = case.inputs["attention"]
    assert isinstance(source, torch.Tensor)
    turned = expected.unflatten(-1, (-1, WIDTH))[..., -ROTARY:]
    heads = y.contiguous().unflatten(-1, (-1, WIDTH))
    kept = (heads.flatten(1, 2)[..., :-ROTARY]).contiguous().view(torch.int16)
    findings = []
    different = kept != source[..., :-ROTARY].contiguous().view(torch.int16)
    if different.any():
        place = different.nonzero()[0].tolist()
        findings.append(
            f"grouped: {int(different.sum())} numbers that are not rotated differ from the input's: {place}"
        )
    error = quantized.float32_error(turned, rotary=ROTARY)
    return findings + judging.bf16_within("grouped, rotary part", heads[..., -ROTARY:], turned, error)


def scale_codes(name: str, got: torch.Tensor, tokens: int) -> tuple[torch.Tensor, list[str]]:
    """E8M0 codes (int32) [T, G, blocks] of a scale tensor in any layout; findings where it holds something else."""
    if name == "scale":
        return got.view(torch.uint8).to(torch.int32), []
    findings = []
    if got[..., tokens:].contiguous().view(torch.int32).any():
        findings.append(f"{name}: a scale past the last token is not 0")
    columns = got[..., :tokens].permute(2, 0, 1).contiguous()
    bits = columns.view(torch.int32)
    if name == "scale_i32":
        return torch.stack([bits >> shift & 0xFF for shift in (0, 8, 16, 24)], dim=-1).flatten(-2), findings
    found = torch.where(columns.isnan(), 255, torch.where(bits == 0x00400000, 0, bits >> 23))
    is_power = (bits & 0x7FFFFF == 0) & (bits > 0) | columns.isnan() | (bits == 0x00400000)
    if not is_power.all():
        findings.append(f"{name}: a scale is no power of two")
    return found, findings


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first number (or code · scale) that is further off than rounding: a bf16 step, or a step of E4M3."""
    (name,) = case.expected
    expected = case.expected[name]
    tokens, groups, width = expected.shape
    if name == "grouped":
        said, relative = got[name].to(torch.float64), 2.0**-7
        allowed = quantized.float32_error(expected.unflatten(-1, (-1, WIDTH)), rotary=ROTARY, relative=relative)
        allowed = allowed.flatten(-2)
    else:
        (scales,) = set(got) - {"codes"}
        scale, _ = scale_codes(scales, got[scales], tokens)
        size = quantized.scale_values(scale).repeat_interleave(BLOCK, dim=-1)
        said = got[name].contiguous().to(torch.float64) * size
        allowed = expected.abs() * 2.0**-3 + size * 2.0**-9
    places = (~((said - expected).abs() <= allowed) & expected.isfinite()).nonzero()
    if not len(places):
        return None
    token, group, column = places[0].tolist()
    heads = groups * width // WIDTH
    number = (token * heads + group * width // WIDTH + column // WIDTH) // int(config.get("heads_per_warp", 1))
    warps = int(config.get("warps", 1))
    return name, (token, group, column), f"warp {number % warps} of CTA {number // warps}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    tokens = sizes["T"]
    generator = torch.Generator(device=device).manual_seed(seed)
    values: dict[str, Value] = {
        "attention": torch.randn(tokens, dims["H"], WIDTH, generator=generator, device=device, dtype=torch.bfloat16),
        "cos_sin": table(tokens, generator),
    }
    for name, layout in output_layouts(dims, variant, tokens).items():
        values[name] = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device=device)
    return values
