"""embed: rows of the table, copied: every bit has to be right, NaN payloads and the sign of zero included."""

from __future__ import annotations

import torch

from dsv4.generator.verify import judging
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import embed as reference

THOROUGH_CASES = (1, 4)
"""Seven tokens, and the first and the last row in turn (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192, "V": 129280}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, copies = dims["d"], int(variant.get("copies", 4))
    index = torch.int64 if variant.get("long_tokens", True) else torch.int32
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def add(name: str, tokens: torch.Tensor, table: torch.Tensor) -> None:
        held = table.to(device)
        chosen = tokens.to(index).to(device)
        count = tokens.shape[0]
        made.append(
            Case(
                op="embed",
                name=name,
                inputs={"tokens": chosen, "table": held},
                outputs={"streams": OutputLayout((count, copies, columns), (copies * columns, columns, 1), held.dtype)},
                expected={"streams": reference.embed(chosen.long(), held, streams=copies).double()},
            )
        )

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).to(torch.bfloat16)

    table = normal(53)
    for count in (0, 1, 7, 64, 150):
        add(f"T={count}", torch.randint(53, (count,), generator=generator), table)
    add("the first and the last row in turn", torch.tensor([0, 52, 0, 52, 52]), table)
    add("one token again and again", torch.full((9,), 17), table)
    add("a table of one row", torch.zeros(3), normal(1))
    bits = torch.randint(-(1 << 15), 1 << 15, (11, columns), generator=generator).to(torch.int16)
    bits[bits == 0x7FA5] = 0x7FA4  # what unwritten elements hold
    add(
        "any bits: NaN payloads, infinities, denormals, negative zeros",
        torch.arange(10, -1, -1),
        bits.view(table.dtype),
    )
    return made


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    ours, expected = got["streams"], case.expected["streams"]
    right = _rows(case)
    wrong = ours.contiguous().view(torch.int16) != right.view(torch.int16)
    findings = []
    if int(wrong.sum()):
        place = wrong.nonzero()[0].tolist()
        findings.append(f"streams: {int(wrong.sum())} of {wrong.numel()} elements differ, the first at {place}")
    return judging.verdict(ours, expected, findings)


def _rows(case: Case) -> torch.Tensor:
    """The right bf16 elements, bit by bit."""
    tokens, table = case.inputs["tokens"], case.inputs["table"]
    assert isinstance(tokens, torch.Tensor) and isinstance(table, torch.Tensor)
    copies = case.expected["streams"].shape[1]
    rows = table.view(torch.int16)[tokens.long()]
    return rows[:, None].expand(-1, copies, -1).contiguous().view(table.dtype)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element that differs; a tile is a CTA's columns."""
    wrong = (got["streams"].contiguous().view(torch.int16) != _rows(case).view(torch.int16)).nonzero()
    if not len(wrong):
        return None
    token, stream, column = wrong[0].tolist()
    width = 8 * int(config.get("threads", 128))
    return "streams", (token, stream, column), f"columns {column // width * width} … of a CTA of {width}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens, rows, columns = sizes["T"], sizes["V"], dims["d"]
    index = torch.int64 if variant.get("long_tokens", True) else torch.int32
    bf16 = torch.bfloat16
    return {
        "tokens": torch.randint(rows, (tokens,), generator=generator, device=device).to(index),
        "table": torch.randn(rows, columns, generator=generator, device=device, dtype=bf16),
        "streams": torch.empty(tokens, int(variant.get("copies", 4)), columns, device=device, dtype=bf16),
    }
