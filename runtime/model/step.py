"""One step: some tokens of some sequences, prefill chunks and decoding in one form.

Tokens are flattened, T of all sequences one after another, without padding. Everything that shapes depend on is known
to the host (``lengths``, ``reach``); the rest are tensors, so that a step of the same lengths can be replayed as a CUDA
graph on new values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dsv4.runtime.errors import ContractError

LogitRows = Literal["last", "all", "none"]


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence: ``tokens`` at positions ``first``, first + 1 …; ``slot`` is its place in the
    cache."""

    slot: int
    first: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class Step:
    """A batch as the model takes it.

    ``tokens``, ``positions`` and ``sequence`` i64 [T]: ids, 0-based positions, and which of the S sequences each
    belongs to. ``starts`` i64 [S + 1]: sequence s has tokens starts[s] … starts[s+1] − 1. ``slots`` i64 [S]: places in
    the cache, −1 for a sequence that is padding (nothing is stored for it). ``lengths``: tokens of each sequence, as
    the host knows them. ``reach``: no position of this step is as large; the cost of a step grows with it.
    ``logit_rows`` i64 [R]: the tokens whose logits are wanted.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    sequence: torch.Tensor
    starts: torch.Tensor
    slots: torch.Tensor
    logit_rows: torch.Tensor
    lengths: tuple[int, ...]
    reach: int

    @classmethod
    def of(
        cls,
        chunks: Sequence[Chunk],
        *,
        logits: LogitRows = "last",
        reach: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Step:
        """The step of ``chunks``, with logits of the last token of each, of all tokens, or of none.

        ``reach`` may be given larger than it has to be, so that steps of different positions have one shape. Raises
        ``ContractError`` for an empty chunk, a negative position, or a slot that is given twice.
        """
        slots = [chunk.slot for chunk in chunks]
        for number, chunk in enumerate(chunks):
            if not len(chunk.tokens) or chunk.first < 0:
                found = f"{len(chunk.tokens)} tokens from position {chunk.first}"
                raise ContractError(f"step: chunk {number}: found {found}; valid: 1 or more from position 0 or later")
            if chunk.slot >= 0 and slots.index(chunk.slot) != number:
                raise ContractError(f"step: chunk {number}: found slot {chunk.slot} again; valid: one chunk a slot")
        lengths = tuple(len(chunk.tokens) for chunk in chunks)
        needed = max((chunk.first + len(chunk.tokens) for chunk in chunks), default=0)
        if reach is not None and reach < needed:
            raise ContractError(f"step: reach: found {reach}; valid: {needed} or more, past the last position")
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        rows = {"last": [end - 1 for end in starts[1:]], "all": list(range(starts[-1])), "none": []}[logits]

        def tensor(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64).to(device)

        return cls(
            tokens=tensor([token for chunk in chunks for token in chunk.tokens]),
            positions=tensor([chunk.first + i for chunk in chunks for i in range(len(chunk.tokens))]),
            sequence=tensor([number for number, length in enumerate(lengths) for _ in range(length)]),
            starts=tensor(starts),
            slots=tensor(slots),
            logit_rows=tensor(rows),
            lengths=lengths,
            reach=needed if reach is None else reach,
        )

    @property
    def is_decode(self) -> bool:
        """Few tokens a sequence: nothing in the step may wait for the device."""
        return all(length <= DECODE_TOKENS_MAX for length in self.lengths)

    @property
    def device(self) -> torch.device:
        return self.tokens.device


DECODE_TOKENS_MAX = 8
"""Tokens of a sequence in a decoding step: one and its drafts."""
