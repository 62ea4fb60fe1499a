"""Inputs for a router's gate product: tokens, gates and biases by which mistakes show; and tables of experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

VOCABULARY = 50


@dataclass(frozen=True)
class GateInputs:
    """``y`` bf16 [T, d] (with NaN in the gap between rows, where there is one), ``gate`` bf16 [E, d], ``bias`` [E].

    ``exact``: small whole numbers, whose float32 sums are exact in any order.
    """

    name: str
    y: torch.Tensor
    gate: torch.Tensor
    bias: torch.Tensor
    exact: bool


def gate_inputs(columns: int, experts: int, generator: torch.Generator, device: torch.device) -> list[GateInputs]:
    """T of 0, 1, 3, 5, 7, 9, 16, 19 and 64; ties, single columns, magnitudes, NaN and infinite tokens."""
    made: list[GateInputs] = []

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    def whole(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high + 1, size, generator=generator).float()

    gate = normal(experts, columns) * 2.0 / math.sqrt(columns)
    whole_gate = whole(-1, 1, experts, columns)
    bias = 0.3 * normal(experts)

    def add(name: str, y: torch.Tensor, w: torch.Tensor, b: torch.Tensor, *, exact: bool = False, gap: int = 0) -> None:
        padded = torch.full((y.shape[0], columns + gap), math.nan, dtype=torch.bfloat16)
        padded[:, :columns] = y.to(torch.bfloat16)
        held = padded.to(device)[:, :columns]
        made.append(GateInputs(name, held, w.to(torch.bfloat16).to(device), b.to(device), exact))

    add("T=0", normal(0, columns), gate, bias)
    add("T=1, normal", normal(1, columns), gate, bias)
    sparse = whole(-1, 1, 7, columns) * (torch.arange(columns) % 97 == 5)
    add("T=7, whole numbers, few of them: many equal scores", sparse, whole_gate, torch.zeros(experts), exact=True)
    few = whole(-2, 2, 19, columns) * (torch.arange(columns) % 31 == 30)
    add("T=19, whole numbers with a bias, gaps between rows", few, whole_gate, bias, exact=True, gap=8)
    one_hot = torch.zeros(16, columns)
    one_hot[torch.arange(16), torch.linspace(0, columns - 1, 16).long()] = 1.0
    add("T=16, one column each: every column's place", one_hot, whole(-3, 3, experts, columns), bias, exact=True)
    add("T=64, normal", normal(64, columns), gate, bias)
    large = normal(5, columns) * torch.tensor([1e-3, 0.1, 1.0, 8.0, 30.0])[:, None]
    add("T=5, from tiny to large logits", large, gate, bias)
    ends = torch.zeros(experts)
    ends[0], ends[experts - 1] = 100.0, 90.0
    add("T=3, the bias prefers the first and the last expert", normal(3, columns), gate, ends)
    strange = normal(9, columns)
    strange[2, 0], strange[5, columns - 1], strange[6] = math.nan, math.inf, math.nan
    add("T=9, NaN and infinite tokens between finite ones", strange, gate, bias)
    return made


def named_experts(
    tokens: int, experts: int, k: int, generator: torch.Generator, device: torch.device, *, halves: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A table of experts, token ids, and the experts [T, k] that the table names for them.

    ``halves``: both are i64 seen as their low 32 bits, by strides; otherwise i32.
    """
    rows = [torch.randperm(experts, generator=generator)[:k] for _ in range(VOCABULARY)]
    table = torch.stack(rows).to(device)
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator).to(device)
    named = table[ids]
    if halves and tokens > 1:
        return table.view(torch.int32)[:, ::2], ids.view(torch.int32)[::2], named
    return table.to(torch.int32), ids.to(torch.int32), named
