"""rms_norm_quant: y by rms_norm's rule, the codes and scales byte for byte those of the y that was written.

Where y is not written, the codes are held to the correctly rounded y, from which a kernel's y may be one bf16 step
away: the scale is that of an amax within one step, and under the scale that was written 99.9 % of the codes are right,
the rest one step off (dsv4-reference §3.1, §4.2). Codes of a NaN: as for quantize.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.block_bytes import (
    FORMATS,
    different_codes,
    laid_out,
    output_layouts,
    quantized,
    row_scales,
    unknown_codes,
    unpacked,
    values,
    written_as,
)
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.operators.rms_norm import expected_float64
from dsv4.generator.verify.quantized import code_steps, scale_findings, step_findings
from dsv4.runtime.artifact import Scalar

BF16_STEP = 2.0**-8
"""More than half a bf16 step of rounding and less than two, relative."""

THOROUGH_CASES = (1, 3)
"""Seven rows, and rows that lie apart (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, format, layout = dims["d"], str(variant["format"]), str(variant["scale_layout"])
    generator = torch.Generator(device="cpu").manual_seed(seed)
    block = FORMATS[format].block
    power = torch.randint(-4, 5, (columns // block,), generator=generator).repeat_interleave(block)
    w = ((1.0 + 0.5 * torch.randn(columns, generator=generator)) * torch.exp2(power)).to(torch.bfloat16)
    made: list[Case] = []

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator)

    def add(name: str, x: torch.Tensor, *, eps: float = 1e-6, x_gap: int = 0, gap: int = 0) -> None:
        rows = x.shape[0]
        padded = torch.full((rows, columns + x_gap), math.nan, dtype=torch.bfloat16)  # NaN in the gap: never to be read
        padded[:, :columns] = x.to(torch.bfloat16)
        held = padded[:, :columns]
        exact = expected_float64(held, w, eps)
        outer = torch.tensor([0.0131]) if format == "nvfp4" else None
        right = quantized(metrics.round_to_bf16(exact), format, outer)
        outputs = output_layouts(format, layout, rows, columns, gap=gap)
        if variant["with_y"]:
            outputs["y"] = OutputLayout((rows, columns), (columns + gap, 1), torch.bfloat16)
        inputs: dict[str, Value] = {"x": padded.to(device)[:, :columns], "w": w.to(device), "eps": eps}
        if outer is not None:
            inputs["input_scale"] = outer.to(device)
        expected = {"y": exact, "codes": right.codes, "scale": laid_out(right.scale, layout)}
        on_device = {name: value.to(device) for name, value in expected.items()}
        made.append(Case(op="rms_norm_quant", name=name, inputs=inputs, outputs=outputs, expected=on_device))

    for rows in (0, 1, 7, 64, 133):
        add(f"T={rows}, normal", normal(rows))
    add("rows lie apart", normal(9), x_gap=8, gap=24)
    add("rows from 1e-18 to 1e17", normal(19) * torch.logspace(-18, 17, 19).unsqueeze(1))
    add("eps counts", normal(5) * 1e-3, eps=1e-5)
    spike = torch.full((11, columns), 1e-3)
    spike[torch.arange(11), torch.linspace(0, columns - 1, 11).long()] = 1e3
    add("one large element, at the first, the last and between: a column left out of the sum shows", spike)
    add("zeros", torch.zeros(3, columns))
    strange = normal(13)
    strange[2, 0] = math.nan
    strange[5, columns - 1] = math.inf
    strange[6, columns // 2] = -math.inf
    strange[11] = math.nan
    add("NaN and infinite rows between finite ones", strange)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    exact = case.expected["y"].cpu()
    rows = exact.shape[0]
    format, layout, outer = _written_as(case)
    scale = row_scales(got["scale"], layout, rows)
    findings = []
    if "y" in got:
        y = got["y"].contiguous().cpu()
        findings += judging.bf16_within("y", y, exact, 2.0**-20 * exact.abs())
        right = quantized(y, format, outer)
        wrong = different_codes(got["codes"], right.codes, unknown_codes(y, format))
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            findings.append(f"codes: {int(wrong.sum())} of {wrong.numel()} are not those of y, the first at {place}")
        wrong = scale != right.scale.view(torch.uint8)
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            findings.append(f"scale: {int(wrong.sum())} of {wrong.numel()} are not those of y, the first at {place}")
    else:
        findings += scale_findings("scale", scale, *_scale_bounds(exact, format, outer))
        findings += step_findings("codes", _steps(got["codes"], scale, exact, format, outer), "code")
    as_written = laid_out(scale.view(FORMATS[format].scale_dtype), layout)
    if layout == "swizzled_128x4" and not torch.equal(as_written, got["scale"].contiguous().cpu().view(torch.uint8)):
        findings.append("scale: bytes of rows that do not exist are not 0")
    ours = values(got["codes"], scale, format, outer)
    theirs = values(case.expected["codes"], row_scales(case.expected["scale"], layout, rows), format, outer)
    return judging.verdict(ours, theirs, findings)


def _scale_bounds(exact: torch.Tensor, format: str, outer: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and largest scale byte (int32 [T, blocks]) of a y one bf16 step away from the right one."""
    right = metrics.round_to_bf16(exact)

    def of(y: torch.Tensor) -> torch.Tensor:
        return quantized(y.to(torch.bfloat16), format, outer).scale.view(torch.uint8).to(torch.int32)

    low, high = of(right.double() * (1 - BF16_STEP)), of(right.double() * (1 + BF16_STEP))
    return torch.minimum(low, high), torch.maximum(low, high)


def _steps(
    codes: torch.Tensor, scale: torch.Tensor, exact: torch.Tensor, format: str, outer: torch.Tensor | None
) -> torch.Tensor:
    """Steps [T, d] from the right code of y under the scales (bytes [T, blocks]) that the kernel wrote."""
    found = FORMATS[format]
    codes = codes.contiguous().cpu()
    code = unpacked(codes) if found.packed else codes.view(torch.uint8)
    step = scale.view(found.scale_dtype).to(torch.float64)
    if outer is not None:
        step = (step.float() * outer).double()
    y = metrics.round_to_bf16(exact).double().unflatten(-1, (-1, found.block))
    y = torch.where((step == 0)[..., None] & ~y.isnan(), 0.0, y)  # such a block has zero codes
    step = torch.where(step == 0, 1.0, step)
    name = "e2m1" if found.packed else "e4m3"
    return code_steps(code.unflatten(-1, (-1, found.block)), y, step, name).flatten(-2)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first y more than one step off, else the first code that is; a tile is the rows of a CTA."""
    exact = case.expected["y"].cpu()
    format, layout, outer = _written_as(case)
    rows = int(config.get("rows_per_cta", 1))
    places, name = torch.empty(0, 2, dtype=torch.int64), "y"
    if "y" in got:
        places = (metrics.bf16_ulps_apart(got["y"].contiguous().cpu(), metrics.round_to_bf16(exact)) > 1).nonzero()
    if not len(places):
        scale = row_scales(got["scale"], layout, exact.shape[0])
        places, name = (_steps(got["codes"], scale, exact, format, outer) > 1).nonzero(), "codes"
    if not len(places):
        wrong = (got["scale"].contiguous().cpu().to(torch.float32) != case.expected["scale"].cpu()).nonzero()
        found = layout == "m_major" and len(wrong)
        return ("scale", tuple(wrong[0].tolist()), f"the scales, {layout}") if found else None
    row, column = places[0].tolist()
    index = column // 2 if name == "codes" and FORMATS[format].packed else column
    return name, (row, index), f"tile {row // rows} ({rows} rows a CTA), row {row % rows} of it"


def _written_as(case: Case) -> tuple[str, str, torch.Tensor | None]:
    """Format, layout of the scales and the tensor's scale."""
    outer = case.inputs.get("input_scale")
    assert outer is None or isinstance(outer, torch.Tensor)
    return *written_as(case.outputs, *case.expected["y"].shape), None if outer is None else outer.cpu()


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, columns, format = sizes["T"], dims["d"], str(variant["format"])
    x = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.bfloat16)
    w = torch.randn(columns, generator=generator, device=device, dtype=torch.bfloat16)
    made: dict[str, Value] = {"x": x, "w": w, "eps": 1e-6}
    if variant["with_y"]:
        made["y"] = torch.empty_like(x)
    if format == "nvfp4":
        made["input_scale"] = torch.tensor([0.0131], device=device)
    for name, layout in output_layouts(format, str(variant["scale_layout"]), rows, columns).items():
        made[name] = torch.empty(layout.shape, dtype=layout.dtype, device=device)
    return made
