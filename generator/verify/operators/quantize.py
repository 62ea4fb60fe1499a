"""quantize: codes and scales byte for byte those of the reference.

Everything a kernel computes is either a comparison of bits, a multiplication by a power of two or a correctly rounded
operation, so there is nothing to tolerate (dsv4-reference §4.2, §6.3, §9.4). Not held to anything are the sign of an
E4M3 NaN and the E2M1 codes of values that are NaN or whose scale is.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging
from dsv4.generator.verify.block_bytes import (
    FORMATS,
    different_codes,
    laid_out,
    output_layouts,
    quantized,
    row_scales,
    unknown_codes,
    values,
    written_as,
)
from dsv4.generator.verify.case import Case, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import codes as number_codes

THOROUGH_CASES = (1, 3)
"""Seven rows, and rows that lie apart (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, format, layout = dims["K"], str(variant["format"]), str(variant["scale_layout"])
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def add(name: str, x: torch.Tensor, *, input_scale: float = 0.0131, x_gap: int = 0, gap: int = 0) -> None:
        rows = x.shape[0]
        padded = torch.full((rows, columns + x_gap), math.nan, dtype=torch.bfloat16)  # NaN in the gap: never to be read
        padded[:, :columns] = x.to(torch.bfloat16)
        held = padded.to(device)[:, :columns]
        outer = torch.tensor([input_scale], device=device) if format == "nvfp4" else None
        codes, scale, *_ = quantized(held, format, outer)
        made.append(
            Case(
                op="quantize",
                name=name,
                inputs={"x": held, **({} if outer is None else {"input_scale": outer})},
                outputs=output_layouts(format, layout, rows, columns, gap=gap),
                expected={"codes": codes.to(device), "scale": laid_out(scale, layout).to(device)},
            )
        )

    def normal(rows: int) -> torch.Tensor:
        """Blocks of other magnitudes beside one another: a scale in the wrong place shows."""
        block = FORMATS[format].block
        power = torch.randint(-6, 7, (rows, columns // block), generator=generator)
        return torch.randn(rows, columns, generator=generator) * torch.exp2(power).repeat_interleave(block, dim=1)

    for rows in (0, 1, 7, 64, 133):
        add(f"T={rows}, normal", normal(rows))
    add("rows lie apart", normal(9), x_gap=8, gap=24)
    add("rows from 1e-30 to 1e30", normal(31) * torch.logspace(-30, 30, 31).unsqueeze(1), input_scale=1.0)
    add("every magnitude of bf16", every_magnitude(columns), input_scale=1.0)
    add("the middles between codes and beside them", middles(columns, FORMATS[format].packed), input_scale=1.0)
    add("one large element a block", spikes(columns, FORMATS[format].block), input_scale=0.5)
    add("zeros of either sign", torch.tensor([[0.0], [-0.0], [1e-38], [-1e-38]]).expand(4, columns))
    strange = normal(13)
    strange[2, 0] = math.nan
    strange[5, columns - 1] = math.inf
    strange[6, columns // 2] = -math.inf
    strange[11] = math.nan
    add("NaN and infinite blocks between finite ones", strange)
    return made


def every_magnitude(columns: int) -> torch.Tensor:
    """All finite bf16 of both signs, neighbours beside one another: [⌈65280 / columns⌉, columns]."""
    magnitudes = torch.arange(0x7F80, dtype=torch.int32)
    bits = torch.stack((magnitudes, magnitudes | 0x8000), dim=-1).flatten()
    every = bits.to(torch.int16).view(torch.bfloat16)
    return torch.nn.functional.pad(every, (0, -len(every) % columns)).view(-1, columns)


def middles(columns: int, packed: bool) -> torch.Tensor:
    """Rows whose first element of every 16 is the format's largest, so that the scale is 1, and whose others are codes,
    the middles between them, and the bf16 beside both. [5, columns]"""
    if packed:
        exact = number_codes.decode_e2m1(torch.arange(8, dtype=torch.uint8))
    else:
        exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    places = torch.cat((exact, (exact[1:] + exact[:-1]) / 2)).to(torch.bfloat16).view(torch.int16)
    near = torch.cat([places, places + 1, places - 1]).clamp(min=0).view(torch.bfloat16).clamp(max=exact[-1])
    line = torch.cat((near, -near)).repeat(-(-5 * columns // (2 * len(near))))[: 5 * columns]
    rows = line.view(5, columns).clone()
    rows[:, ::16] = exact[-1]
    return rows


def spikes(columns: int, block: int) -> torch.Tensor:
    """Small rows with one large element in each block, at another place in each: a lane left out of the amax shows."""
    rows = torch.full((block, columns), 1e-3)
    for place in range(block):
        rows[place, place::block] = (-1.0) ** place * 3.0 * (1 + place)
    return rows


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    x = case.inputs["x"]
    assert isinstance(x, torch.Tensor)
    format, layout = _written_as(case)
    findings = []
    wrong = different_codes(got["codes"], case.expected["codes"], unknown_codes(x, format))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        findings.append(f"codes: {int(wrong.sum())} of {wrong.numel()} differ, the first of row {row}, column {column}")
    wrong = _different_scales(got["scale"], case.expected["scale"])
    if wrong.any():
        findings.append(
            f"scale: {int(wrong.sum())} of {wrong.numel()} differ, the first at {wrong.nonzero()[0].tolist()}"
        )
    outer = case.inputs.get("input_scale")
    assert outer is None or isinstance(outer, torch.Tensor)
    rows = x.shape[0]
    ours = values(got["codes"], row_scales(got["scale"], layout, rows), format, outer)
    theirs = values(case.expected["codes"], row_scales(case.expected["scale"], layout, rows), format, outer)
    return judging.verdict(ours, theirs, findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong code, else the first wrong scale; a tile is the part of the rows that a CTA works on."""
    x = case.inputs["x"]
    assert isinstance(x, torch.Tensor)
    format, layout = _written_as(case)
    rows, parts = int(config.get("rows_per_cta", 1)), int(config.get("row_parts", 1))
    places = different_codes(got["codes"], case.expected["codes"], unknown_codes(x, format)).nonzero()
    if len(places):
        row, column = places[0].tolist()
        tile = f"tile {row // rows} ({rows} rows a CTA), part {column // (x.shape[1] // parts)} of {parts}"
        return "codes", (row, column // (2 if FORMATS[format].packed else 1)), tile
    places = _different_scales(got["scale"], case.expected["scale"]).nonzero()
    if len(places):
        return "scale", tuple(places[0].tolist()), f"the scales, {layout}"
    return None


def _different_scales(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    got = got.contiguous()
    if got.dtype == torch.float32:
        return (got != expected) & ~(got.isnan() & expected.isnan())
    got = got.view(torch.uint8)
    return (got != expected).cpu()


def _written_as(case: Case) -> tuple[str, str]:
    x = case.inputs["x"]
    assert isinstance(x, torch.Tensor)
    return written_as(case.outputs, *x.shape)


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, columns = sizes["T"], dims["K"]
    x = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.bfloat16)
    made: dict[str, Value] = {"x": x}
    if variant["format"] == "nvfp4":
        made["input_scale"] = torch.tensor([0.0131], device=device)
    for name, layout in output_layouts(str(variant["format"]), str(variant["scale_layout"]), rows, columns).items():
        made[name] = torch.empty(layout.shape, dtype=layout.dtype, device=device)
    return made
