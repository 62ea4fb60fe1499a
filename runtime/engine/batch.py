"""What goes into one step of the engine, in one form for prefill and decoding.

The sequences of a step come in three kinds, in this order: *drafted* ones, whose two tokens are the last of the text
and a draft of the next; *finals*, after whose last token the next is drawn; and chunks of prompts that go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dsv4.runtime.engine.options import SamplingOptions
from dsv4.runtime.model.step import Chunk, Step


@dataclass(frozen=True)
class Draws:
    """Of the R sequences that get new tokens, drafted ones first: ``slots``, ``top_k``, ``seed`` and ``position`` i64
    [R], ``temperature`` and ``top_p`` f32 [R]. ``position`` is the place of the first new token. ``drafted`` of the
    sequences have a draft."""

    drafted: int
    slots: torch.Tensor
    top_k: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """``step.logit_rows`` [D + D + F]: the drafted sequences' first rows, their second rows, the finals' last rows.

    ``following`` i64 [T]: the token after each, where the host knows it (inside prompts); the rest is filled in.
    """

    step: Step
    draws: Draws
    following: torch.Tensor


@dataclass(frozen=True)
class Part:
    """One sequence's share of a step: ``tokens`` from position ``first``. ``draws``: whether new tokens come of it;
    ``drafted``: whether the last of ``tokens`` is a draft. ``following``: the token after the last, where it is known.
    """

    slot: int
    first: int
    tokens: Sequence[int]
    options: SamplingOptions
    draws: bool = True
    drafted: bool = False
    following: int = 0

    @property
    def position(self) -> int:
        """The place of the first new token."""
        return self.first + len(self.tokens) - self.drafted


def reach_of(parts: Sequence[Part], positions_max: int) -> int:
    """A bound on the positions of ``parts`` that few steps change: rounded up by a quarter at most, or by 127."""
    needed = max(part.first + len(part.tokens) for part in parts)
    grain = max(128, 1 << max(0, needed.bit_length() - 3))
    return min(-(-needed // grain) * grain, positions_max)


def make_batch(parts: Sequence[Part], positions_max: int, device: torch.device | str) -> Batch:
    """The batch of ``parts``, which are in the order of their kinds, in tensors of its own."""
    chunks = [Chunk(part.slot, part.first, part.tokens) for part in parts]
    step = Step.of(chunks, logits="none", reach=reach_of(parts, positions_max), device=device)
    ends, end = [], 0
    for part in parts:
        end += len(part.tokens)
        ends.append(end)
    drafted = [end for part, end in zip(parts, ends, strict=True) if part.drafted]
    finals = [end for part, end in zip(parts, ends, strict=True) if part.draws and not part.drafted]
    rows = [end - 2 for end in drafted] + [end - 1 for end in drafted] + [end - 1 for end in finals]
    following = [token for part in parts for token in (*part.tokens[1:], part.following)]
    drawing = [part for part in parts if part.draws]

    def ints(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device)

    def floats(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).to(device)

    draws = Draws(
        drafted=len(drafted),
        slots=ints([part.slot for part in drawing]),
        top_k=ints([part.options.top_k for part in drawing]),
        seed=ints([part.options.seed for part in drawing]),
        position=ints([part.position for part in drawing]),
        temperature=floats([part.options.temperature for part in drawing]),
        top_p=floats([part.options.top_p for part in drawing]),
    )
    return Batch(replace(step, logit_rows=ints(rows)), draws, ints(following))
