"""dequantize: bit for bit the reference's bf16.

A code's value times a power of two is exact in float32 unless it is subnormal there; for nvfp4 the two scales are
multiplied first and their product then with the value, each rounded to float32, as ``Quantized.dequantize`` does. Then
one rounding to bf16. Any NaN is right for a NaN.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.block_bytes import FORMATS, laid_out, output_layouts
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.weight import Quantized

THOROUGH_CASES = (1, 3)
"""Seven rows, and rows that lie apart (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}
NAN_SCALE = {torch.float8_e8m0fnu: 255, torch.float8_e4m3fn: 0x7F}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, format, layout = dims["K"], str(variant["format"]), str(variant["scale_layout"])
    found, blocks = FORMATS[format], dims["K"] // FORMATS[format].block
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def draw(rows: int, width: int, low: int = 0, high: int = 256) -> torch.Tensor:
        return torch.randint(low, high, (rows, width), generator=generator, dtype=torch.uint8)

    def add(name: str, codes: torch.Tensor, scale: torch.Tensor, *, outer: float = 0.0131, gap: int = 0) -> None:
        """``codes`` and ``scale``: bytes [T, …]; the scales row-major."""
        rows = codes.shape[0]
        typed = scale.view(found.scale_dtype)
        input_scale = torch.tensor([outer]) if format == "nvfp4" else None
        scalar = None if input_scale is None else input_scale.reshape(())
        x = Quantized(codes.view(found.code_dtype), typed, found.block, scalar).dequantize().to(torch.bfloat16)
        places = output_layouts(format, layout, rows, columns, gap=gap)
        held = {"codes": codes, "scale": laid_out(typed, layout)}
        inputs: dict[str, Value] = {}
        for each, place in places.items():
            missing = place.strides[0] - place.shape[1]
            raw = held[each] if held[each].dtype == torch.float32 else held[each].view(torch.uint8)
            poisoned = torch.nn.functional.pad(raw, (0, missing), value=math.nan if raw.is_floating_point() else 0x7F)
            inputs[each] = poisoned.to(device).view(place.dtype)[:, : place.shape[1]]
        if input_scale is not None:
            inputs["input_scale"] = input_scale.to(device)
        outputs = {"x": OutputLayout((rows, columns), (columns + gap, 1), torch.bfloat16)}
        made.append(Case("dequantize", name, inputs, outputs, expected={"x": x.to(device)}))

    width = columns // 2 if found.packed else columns
    near = (0x20, 0x7F) if format == "nvfp4" else (100, 150)
    for rows in (0, 1, 7, 64, 133):
        add(f"T={rows}, any codes", draw(rows, width), draw(rows, blocks, *near))
    add("rows lie apart", draw(9, width), draw(9, blocks, *near), gap=24)
    every = torch.arange(256, dtype=torch.uint8).repeat(-(-17 * width // 256))[: 17 * width].view(17, width)
    add("every code", every, draw(17, blocks, *near))
    top = 0x7F if format == "nvfp4" else 255
    scales = torch.arange(top, dtype=torch.uint8).repeat(-(-64 * blocks // top))[: 64 * blocks].view(64, blocks)
    add("every scale, the smallest and the largest", draw(64, width), scales, outer=1.0)
    scales = draw(11, blocks, *near)
    scales[3, 0] = scales[7, blocks - 1] = NAN_SCALE[found.scale_dtype]
    add("scales that are NaN between others", draw(11, width), scales)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    x, expected = got["x"].contiguous(), case.expected["x"]
    wrong = _different(x, expected)
    findings = []
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        findings.append(
            f"x: {int(wrong.sum())} of {wrong.numel()} elements differ, the first at [{row}, {column}]: "
            f"{float(x[row, column]):.6g} instead of {float(expected[row, column]):.6g}"
        )
    return judging.verdict(x, expected.to(torch.float64), findings)


def _different(x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    same = x.view(torch.int16) == expected.view(torch.int16)  # zeros have signs
    return ~same & ~(x.isnan() & expected.isnan())


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element that differs; a tile is the part of a row that a CTA works on."""
    x = got["x"].contiguous()
    places = _different(x, case.expected["x"]).nonzero()
    if not len(places):
        return None
    row, column = places[0].tolist()
    parts = int(config.get("row_parts", 1))
    apart = int(metrics.bf16_ulps_apart(x, case.expected["x"])[row, column])
    return "x", (row, column), f"tile {column // (x.shape[1] // parts)} of {parts} of row {row} ({apart} steps)"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, columns, format = sizes["T"], dims["K"], str(variant["format"])
    made: dict[str, Value] = {"x": torch.empty(rows, columns, dtype=torch.bfloat16, device=device)}
    if format == "nvfp4":
        made["input_scale"] = torch.tensor([0.0131], device=device)
    for name, place in output_layouts(format, str(variant["scale_layout"]), rows, columns).items():
        if place.dtype == torch.float32:
            made[name] = torch.rand(place.shape, generator=generator, device=device)
        else:
            raw = torch.randint(100, 120, place.shape, generator=generator, device=device, dtype=torch.uint8)
            made[name] = raw.view(place.dtype)
    return made
