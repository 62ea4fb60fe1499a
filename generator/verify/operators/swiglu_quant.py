"""swiglu_quant: h by its distance from float64, then codes and scales of the numbers that h may be.

A kernel computes silu from approximations of 2^x and 1/x whose arguments were rounded, and multiplies twice more, so
its h is off by at most (16 + 3 |g|) · 2^-24 of |h|, g the clamped gate; below g = −87, where exp(−g) overflows float32,
it may also be 0. bf16: every element is the rounding of such a number, 99.9 % are the correctly rounded ones (but for
gates near 0, whose h is nearly gate · up / 2, a number of 16 bits that lies in the middle of two bf16 once in 2^8; one
case has many, and one has overflows). Codes: 99.9 % are right, the rest one step off, under the scale that the kernel
wrote; the scale is that of an amax within the same bounds (dsv4-reference §9.2, §9.4). Codes of a NaN: as for quantize.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging
from dsv4.generator.verify.block_bytes import (
    FORMATS,
    laid_out,
    output_layouts,
    quantized,
    row_scales,
    unpacked,
    values,
    written_as,
)
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.quantized import code_steps, scale_findings, scale_range, step_findings
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference.codes import E2M1_MAX, E4M3_MAX
from dsv4.runtime.reference.swiglu_quant import swiglu_quant as reference

LIMIT = 10.0
OVERFLOW = -87.0
THOROUGH_CASES = (1, 3)
"""Seven rows, and rows that lie apart (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def halves(gate_up: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and ups [T, I] of a row that holds both [T, 2I]."""
    if interleaved:
        runs = gate_up.unflatten(-1, (-1, 2, 8))
        return runs[..., 0, :].flatten(-2), runs[..., 1, :].flatten(-2)
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


def laid_in(
    gate: torch.Tensor, up: torch.Tensor, layout: str, gap: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The kernel's arguments for gates and ups [T, I] in bf16, ``gap`` columns of NaN behind each row."""

    def gapped(matrix: torch.Tensor, gap: int) -> torch.Tensor:
        padded = matrix.new_full((matrix.shape[0], matrix.shape[1] + gap), math.nan)
        padded[:, : matrix.shape[1]] = matrix
        return padded.to(device)[:, : matrix.shape[1]]

    if layout == "separate":  # two tensors, whose rows lie apart in ways of their own
        return {"gates": gapped(gate, gap), "ups": gapped(up, 2 * gap)}
    if layout == "halves":
        return {"gate_up": gapped(torch.cat((gate, up), dim=-1), gap)}
    runs = [part.unflatten(-1, (-1, 8)) for part in (gate, up)]
    return {"gate_up": gapped(torch.stack(runs, dim=-2).flatten(-3), gap)}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    width, format, layout = dims["I"], str(variant["format"]), str(variant["scale_layout"])
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def normal(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gates and ups; blocks of other magnitudes beside one another."""
        power = torch.randint(-4, 3, (rows, width // 16), generator=generator).repeat_interleave(16, dim=1)
        gate = 3 * torch.randn(rows, width, generator=generator)
        return gate, torch.randn(rows, width, generator=generator) * torch.exp2(power)

    def add(
        name: str,
        gate: torch.Tensor,
        up: torch.Tensor,
        *,
        weight: torch.Tensor | None = None,
        limit: float = LIMIT,
        input_scale: float = 0.0131,
        x_gap: int = 0,
        gap: int = 0,
        inexact_share: float = 1e-3,
    ) -> None:
        rows = gate.shape[0]
        gate, up = gate.to(torch.bfloat16), up.to(torch.bfloat16)
        if weight is None:
            weight = torch.rand(rows, generator=generator) + 0.05
        weights = weight if variant["weighted"] else None
        h = reference(gate, up, weights, limit=limit, dtype=torch.float64, out_dtype=torch.float64)
        assert isinstance(h, torch.Tensor)
        g = gate.to(torch.float64).clamp(max=limit)
        error = (16 + 3 * g.abs()) * 2.0**-24 * h.abs()
        error = torch.where(g < OVERFLOW, h.abs(), error).nan_to_num(nan=0.0, posinf=0.0)
        expected = {"h": h, "error": error}
        inputs: dict[str, Value] = {**laid_in(gate, up, str(variant["gate_up_layout"]), x_gap, device), "limit": limit}
        if variant["weighted"]:
            inputs["route_weight"] = weight.to(device)
        if format == "bf16":
            outputs = {"h": OutputLayout((rows, width), (width + gap, 1), torch.bfloat16)}
        else:
            outputs = output_layouts(format, layout, rows, width, gap=gap)
        outer = torch.tensor([input_scale]) if format == "nvfp4" else None
        if outer is not None:
            inputs["input_scale"] = outer.to(device)
        if format != "bf16":  # the right bytes of h itself
            right = quantized(h, format, outer)
            expected |= {"codes": right.codes, "scale": laid_out(right.scale, layout)}
        on_device = {name: value.to(device) for name, value in expected.items()}
        limits = {"inexact_share": inexact_share}
        made.append(Case("swiglu_quant", name, inputs, outputs, expected=on_device, limits=limits))

    for rows in (0, 1, 7, 64, 133):
        add(f"T={rows}, normal", *normal(rows))
    add("rows lie apart", *normal(9), x_gap=8, gap=24)
    gate, up = normal(23)
    reach = torch.linspace(-80, 95, 23).unsqueeze(1)
    add("gates from -80 to 95", reach + 0.1 * gate, up)
    add(
        "gates whose exponential overflows",
        torch.linspace(-82, -110, 23).unsqueeze(1) + 0.1 * gate,
        up,
        inexact_share=1.0,
    )
    add("ups from -80 to 95", gate, reach + 0.1 * up)
    add("another limit, one beside it", *(3.5 + 0.02 * part for part in normal(11)), limit=3.5)
    add("rows of other weights", *normal(19), weight=torch.logspace(-6, 6, 19))
    sizes = torch.logspace(-12, 4, 17).unsqueeze(1)
    add("small and large", *(part * sizes for part in normal(17)), input_scale=1.0, inexact_share=2.0**-7)
    add("zeros", torch.zeros(3, width), torch.tensor([[0.0], [-1.0], [1.0]]).expand(3, width))
    gate, up = normal(13)
    gate[2, 0], up[3, width // 2], gate[5, width - 1], up[6, 17] = math.nan, math.nan, math.inf, -math.inf
    gate[11] = math.nan
    add("NaN and infinities: a clamp keeps the first and takes the second", gate, up)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    h, error = case.expected["h"].cpu(), case.expected["error"].cpu()
    if "h" in case.outputs:
        rounded = got["h"].contiguous().cpu()
        return judging.verdict(
            rounded, h, judging.bf16_within("h", rounded, h, error, inexact_share=case.limits["inexact_share"])
        )
    format, layout, outer = _written_as(case)
    rows, found = h.shape[0], FORMATS[format]
    scale = row_scales(got["scale"], layout, rows)
    low, high = _scale_bounds(h, error, format, outer)
    findings = scale_findings("scale", scale, low, high)
    if layout == "swizzled_128x4":
        findings += _padding_findings(got["scale"], scale.view(found.scale_dtype), layout)
    steps = _steps(got["codes"], scale, h, error, format, outer)
    findings += step_findings("codes", steps, "code")
    outer_tensor = None if format != "nvfp4" else torch.tensor(outer)
    ours = values(got["codes"], scale, format, outer_tensor)
    right_scale = row_scales(case.expected["scale"], layout, rows)
    theirs = values(case.expected["codes"], right_scale, format, outer_tensor)
    return judging.verdict(ours, theirs, findings)


def _scale_bounds(h: torch.Tensor, error: torch.Tensor, format: str, outer: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and largest scale byte (int32 [T, blocks]) of an h that is off by at most ``error``."""
    block = FORMATS[format].block
    size, slack = h.abs().unflatten(-1, (-1, block)), error.unflatten(-1, (-1, block))
    if format != "nvfp4":
        code = "e2m1" if FORMATS[format].packed else "e4m3"
        return scale_range(size - slack, code, error=0.0)[0], scale_range(size + slack, code, error=0.0)[1]

    def of(amax: torch.Tensor) -> torch.Tensor:
        ratio = (amax.to(torch.float32) / E2M1_MAX / outer).clamp(max=E4M3_MAX)
        return ratio.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int32)

    return of((size - slack).clamp(min=0).amax(-1)), of((size + slack).amax(-1))


def _steps(
    codes: torch.Tensor, scale: torch.Tensor, h: torch.Tensor, error: torch.Tensor, format: str, outer: float
) -> torch.Tensor:
    """Steps [T, I] from the right code of h, or of 0 where h may be 0, under the scales [T, blocks] as written."""
    found = FORMATS[format]
    codes = codes.contiguous().cpu()
    code = unpacked(codes) if found.packed else codes.view(torch.uint8)
    step = scale.view(found.scale_dtype).to(torch.float64) * (outer if format == "nvfp4" else 1.0)
    wide = h.unflatten(-1, (-1, found.block))
    wide = torch.where((step == 0)[..., None] & ~wide.isnan(), 0.0, wide)  # such a block has zero codes
    step = torch.where(step == 0, 1.0, step)
    name = "e2m1" if found.packed else "e4m3"
    code = code.unflatten(-1, (-1, found.block))
    of_zero = code_steps(code, torch.zeros_like(wide), step, name)
    of_h = code_steps(code, wide, step, name)
    may_vanish = (error >= h.abs()).unflatten(-1, (-1, found.block))
    return torch.where(may_vanish, torch.minimum(of_h, of_zero), of_h).flatten(-2)


def _padding_findings(got: torch.Tensor, scale: torch.Tensor, layout: str) -> list[str]:
    wrong = laid_out(scale, layout) != got.contiguous().cpu().view(torch.uint8)
    return [f"scale: {int(wrong.sum())} bytes of rows that do not exist are not 0"] if wrong.any() else []


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The element furthest from the right one's neighbourhood, else the first wrong scale."""
    h = case.expected["h"].cpu()
    rows, parts = int(config.get("rows_per_cta", 1)), int(config.get("row_parts", 1))
    if "h" in case.outputs:
        off = (got["h"].contiguous().cpu().to(torch.float64) - h).abs()
        places = (off > 2.0**-8 * h.abs() + case.expected["error"].cpu()).nonzero()
        name = "h"
    else:
        format, layout, outer = _written_as(case)
        scale = row_scales(got["scale"], layout, h.shape[0])
        low, high = _scale_bounds(h, case.expected["error"].cpu(), format, outer)
        wrong = ((scale.to(torch.int32) < low) | (scale.to(torch.int32) > high)).nonzero()
        if len(wrong) and layout == "row_major":
            return "scale", tuple(wrong[0].tolist()), f"the scales, {layout}"
        places = (_steps(got["codes"], scale, h, case.expected["error"].cpu(), format, outer) > 1).nonzero()
        name = "codes"
    if not len(places):
        return None
    row, column = places[0].tolist()
    index = column // 2 if name == "codes" and got["codes"].dtype == torch.uint8 else column
    tile = f"tile {row // rows} ({rows} rows a CTA), part {column // (h.shape[1] // parts)} of {parts}, row {row}"
    return name, (row, index), tile


def _written_as(case: Case) -> tuple[str, str, float]:
    """Format, layout of the scales and the tensor's scale."""
    outer = case.inputs.get("input_scale")
    assert outer is None or isinstance(outer, torch.Tensor)
    return *written_as(case.outputs, *case.expected["h"].shape), 1.0 if outer is None else float(outer[0])


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, width, format = sizes["T"], dims["I"], str(variant["format"])
    made: dict[str, Value] = {"limit": LIMIT}
    separate = variant["gate_up_layout"] == "separate"
    for name, columns in (("gates", width), ("ups", width)) if separate else (("gate_up", 2 * width),):
        made[name] = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.bfloat16)
    if variant["weighted"]:
        made["route_weight"] = torch.rand(rows, generator=generator, device=device)
    if format == "nvfp4":
        made["input_scale"] = torch.tensor([0.0131], device=device)
    if format == "bf16":
        made["h"] = torch.empty(rows, width, dtype=torch.bfloat16, device=device)
        return made
    for name, layout in output_layouts(format, str(variant["scale_layout"]), rows, width).items():
        made[name] = torch.empty(layout.shape, dtype=layout.dtype, device=device)
    return made
