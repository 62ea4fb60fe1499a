"""rms_norm: y = bf16(w · x / √(mean x² + eps)), judged element by element.

The rule: at least 99.9 % of the elements equal the correctly rounded bf16 of the float64 result, the rest are one bf16
step away. Where the float64 result is NaN or infinite, so is the kernel's.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.judging import verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import rms_norm as reference

INEXACT_SHARE = 1e-3
"""Share of the elements that may be one bf16 step away from the correctly rounded result."""

THOROUGH_CASES = (1, 9)
"""Seven rows, and nineteen with gaps between them (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def expected_float64(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
    """The reference in float64. x [T, d], w [d]; ``eps`` is rounded to float32, which is how a kernel gets it."""
    eps32 = float(torch.tensor(eps, dtype=torch.float32))
    return reference.rms_norm(x, w, eps32, dtype=torch.float64, out_dtype=torch.float64)


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns = dims["d"]
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator)

    w = (1.0 + 0.5 * torch.randn(columns, generator=generator)).to(torch.bfloat16)
    made: list[Case] = []

    def add(name: str, x: torch.Tensor, *, eps: float = 1e-6, x_gap: int = 0, y_gap: int = 0) -> None:
        rows = x.shape[0]
        padded = torch.full((rows, columns + x_gap), math.nan, dtype=torch.bfloat16)  # NaN in the gap: never to be read
        padded[:, :columns] = x.to(torch.bfloat16)
        held = padded.to(device)[:, :columns]
        made.append(
            Case(
                op="rms_norm",
                name=name,
                inputs={"x": held, "w": w.to(device), "eps": eps},
                outputs={"y": OutputLayout((rows, columns), (columns + y_gap, 1), torch.bfloat16)},
                expected={"y": expected_float64(held, w.to(device), eps)},
            )
        )

    for rows in (0, 1, 7, 64, 333):
        add(f"T={rows}, normal", normal(rows))
    scales = torch.logspace(-18, 17, 37).unsqueeze(1)
    add("rows from 1e-18 to 1e17: a wrong row's maximum or mean shows", normal(37) * scales)
    add("eps counts", normal(5) * 1e-3, eps=1e-5)
    add("all zeros", torch.zeros(3, columns))
    spike = torch.full((11, columns), 1e-3)
    spike[torch.arange(11), torch.linspace(0, columns - 1, 11).long()] = 1e3
    add("one large element, at the first, the last and between: a column left out of the sum shows", spike)
    add("constant rows", torch.arange(1, 14).unsqueeze(1).expand(13, columns) * 0.37)
    add("x has gaps between rows", normal(19), x_gap=8)
    add("y has gaps between rows", normal(21), y_gap=24)
    add("x and y have gaps of their own", normal(6), x_gap=64, y_gap=8)
    strange = normal(17)
    strange[2, 0] = math.nan
    strange[5, columns - 1] = math.inf
    strange[6, columns // 2] = -math.inf
    strange[11] = math.nan
    add("NaN and infinite rows between finite ones", strange)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    y, expected = got["y"].contiguous(), case.expected["y"]
    rounded = metrics.round_to_bf16(expected)
    apart = metrics.bf16_ulps_apart(y, rounded)
    inexact, wrong = int((apart > 0).sum()), int((apart > 1).sum())
    allowed = math.ceil(INEXACT_SHARE * y.numel())
    findings = []
    if wrong:
        row, column = (apart > 1).nonzero()[0].tolist()
        findings.append(
            f"y: {wrong} of {y.numel()} elements are more than one bf16 step off, the first at [{row}, {column}]: "
            f"{float(y[row, column]):.6g} instead of {float(rounded[row, column]):.6g}"
        )
    if inexact > allowed:
        findings.append(f"y: {inexact} of {y.numel()} elements are not the correctly rounded ones; {allowed} may be so")
    return verdict(y, expected, findings, {"inexact": inexact, "more_than_one_step": wrong})


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element that is more than one bf16 step off; a tile is the rows of a CTA."""
    apart = metrics.bf16_ulps_apart(got["y"].contiguous(), metrics.round_to_bf16(case.expected["y"]))
    places = (apart > 1).nonzero()
    if not len(places):
        places = (apart > 0).nonzero()
    if not len(places):
        return None
    row, column = places[0].tolist()
    rows = int(config.get("rows_per_cta", 1))
    return "y", (row, column), f"tile {row // rows} ({rows} rows a CTA), row {row % rows} of it"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    x = torch.randn(sizes["T"], dims["d"], generator=generator, device=device, dtype=torch.bfloat16)
    w = torch.randn(dims["d"], generator=generator, device=device, dtype=torch.bfloat16)
    return {"x": x, "w": w, "eps": 1e-6, "y": torch.empty_like(x)}
