"""router_logits: float32 logits in parts, judged element by element.

The rule: a part may be off what a chain of tensor-core instructions can make it (``routing.tensor_core_error``),
nothing where the inputs are small whole numbers, whose sums are exact. NaN and infinities are the reference's.
"""

from __future__ import annotations

import itertools
import math

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.judging import f32_within, verdict
from dsv4.generator.verify.routing import tensor_core_error
from dsv4.runtime.artifact import Scalar

SLICE = 64

THOROUGH_CASES = (0, 1)
"""One token in eight parts, seven in two (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192, "S": 1}


def bounds(columns: int, splits: int) -> list[tuple[int, int]]:
    """The columns (first, end) of each part."""
    slices = columns // SLICE
    ends = [part * slices // splits * SLICE for part in range(splits + 1)]
    return list(itertools.pairwise(ends))


def as_case(name: str, y: torch.Tensor, gate: torch.Tensor, splits: int, *, exact: bool) -> Case:
    """Logits of ``y`` and ``gate`` (bf16) in ``splits`` parts; ``exact``: small whole numbers, which leave no room."""
    rows, experts = y.shape[0], gate.shape[0]
    parts, errors = [], []
    for first, end in bounds(y.shape[1], splits):
        a, b = y[:, first:end].double(), gate[:, first:end].double()
        parts.append(a @ b.T)
        error = tensor_core_error(a.abs() @ b.abs().T, (end - first) // 16, 0)
        errors.append(torch.zeros_like(error) if exact else error)
    return Case(
        op="router_logits",
        name=f"{name}, {splits} parts",
        inputs={"y": y, "gate": gate},
        outputs={"logits": OutputLayout((splits, rows, experts), (rows * experts, experts, 1), torch.float32)},
        expected={"logits": torch.stack(parts), "error": torch.stack(errors)},
    )


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, experts = dims["d"], dims["E"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    def whole(*size: int) -> torch.Tensor:
        return torch.randint(-2, 3, size, generator=generator).float()

    gate = normal(experts, columns) * 2.0 / math.sqrt(columns)
    whole_gate = whole(experts, columns)

    def add(name: str, y: torch.Tensor, w: torch.Tensor, splits: int, *, exact: bool = False, gap: int = 0) -> None:
        rows = y.shape[0]
        splits = min(splits, columns // SLICE)
        padded = torch.full((rows, columns + gap), math.nan, dtype=torch.bfloat16)  # NaN in the gap: never to be read
        padded[:, :columns] = y.to(torch.bfloat16)
        held, w16 = padded.to(device)[:, :columns], w.to(torch.bfloat16).to(device)
        made.append(as_case(name, held, w16, splits, exact=exact))

    add("T=0", normal(0, columns), gate, 1)
    add("T=1, normal", normal(1, columns), gate, 8)
    add("T=7, whole numbers", whole(7, columns), whole_gate, 2, exact=True)
    add("T=65, whole numbers, gaps between rows", whole(65, columns), whole_gate, 5, exact=True, gap=8)
    add("T=64, normal", normal(64, columns), gate, 1)
    large = normal(9, columns) * torch.logspace(-4, 4, 9)[:, None]
    add("T=9, from tiny to large", large, gate, 3)
    strange = normal(9, columns)
    strange[2, 0], strange[5, columns - 1], strange[6] = math.nan, math.inf, math.nan
    add("T=9, NaN and infinite tokens between finite ones", strange, gate, 1)
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    logits, expected = got["logits"], case.expected["logits"]
    return verdict(logits, expected, f32_within("logits", logits, expected, case.expected["error"]))


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element that is too far off; a tile is 64 tokens by ``tile_n`` experts."""
    logits, expected = got["logits"].double(), case.expected["logits"]
    off = ~((logits - expected).abs() <= case.expected["error"]) & expected.isfinite()
    off |= ~expected.isfinite() & ~((logits == expected) | (logits.isnan() & expected.isnan()))
    if not off.any():
        return None
    split, token, expert = off.nonzero()[0].tolist()
    width = int(config.get("tile_n", 1))
    tile = f"tile ({token // 64}, {expert // width}) of part {split} (64 tokens, {width} experts)"
    return "logits", (split, token, expert), f"{tile}, row {token % 64}, column {expert % width} of it"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    y = torch.randn(sizes["T"], dims["d"], generator=generator, device=device, dtype=torch.bfloat16)
    gate = torch.randn(dims["E"], dims["d"], generator=generator, device=device) / math.sqrt(dims["d"])
    logits = torch.empty(sizes["S"], sizes["T"], dims["E"], device=device)
    return {"y": y, "gate": gate.to(torch.bfloat16), "logits": logits}
