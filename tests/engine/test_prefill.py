"""A prompt of any length, prefilled by the engine into its pages, is the text decoded token by token."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, SamplingOptions
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.cache import Cache
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.plan import Plan
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Forward, Transformer
from tests.engine.small_engine import CONFIG, model

LENGTH, AFTER = 300, 3
"""The longest prompt, and how many tokens are generated after each."""
WARM = SamplingOptions(temperature=1.0, seed=4, max_new_tokens=AFTER)
"""What is drawn depends on the logits, the seed and the place alone: a text goes on the same from any of its places."""
LENGTHS = (1, 2, 3, 4, 5, 8, 35, 36, 127, 128, 129, 131, 255, 256, 257, 300)


class Watched(Transformer):
    """Remembers the logits and the drafts' logits of each position, of one sequence."""

    def __init__(self) -> None:
        super().__init__(CONFIG, model().weights)
        self.seen: dict[int, torch.Tensor] = {}
        self.drafted: dict[int, torch.Tensor] = {}

    def forward(self, step: Step, cache: Cache, plan: Plan | None = None) -> Forward:
        out = super().forward(step, cache, plan)
        self.seen |= zip(step.positions[step.logit_rows].tolist(), out.logits, strict=True)
        return out

    def draft(
        self, streams: torch.Tensor, next_tokens: torch.Tensor, step: Step, cache: Cache, plan: Plan | None = None
    ) -> Forward:
        out = super().draft(streams, next_tokens, step, cache, plan)
        self.drafted |= zip(step.positions[step.logit_rows].tolist(), out.logits, strict=True)
        return out


def run(tokens: tuple[int, ...], count: int, *, chunk: int, speculate: bool = False) -> tuple[tuple[int, ...], Watched]:
    """``tokens`` and ``count`` more, by an engine of its own."""
    watched = Watched()
    settings = CacheSettings(
        sequences=1, block=128, drafts=int(speculate), step_tokens=LENGTH, positions_max=LENGTH + AFTER
    )
    pages = PagedCache(CacheLayout.holding(CONFIG, settings, watched.precision, LENGTH + AFTER))
    options = SamplingOptions(temperature=WARM.temperature, seed=WARM.seed, max_new_tokens=count)
    (result,) = Engine(watched, pages, chunk=chunk, speculate=speculate).generate([Request(tokens, options)])
    return (*tokens, *result.tokens), watched


@cache
def decoded() -> tuple[tuple[int, ...], Watched]:
    """A text after one token, all of it decoded."""
    text, watched = run((7,), LENGTH + AFTER - 1, chunk=1)
    assert len(text) == LENGTH + AFTER and len(set(text)) > 60 and len(watched.seen) == LENGTH + AFTER - 1
    return text, watched


@cache
def plain_drafts() -> torch.Tensor:
    """The MTP layer's logits at each position of that text, from one pass over it without an engine."""
    text, contiguous = decoded()[0], ContiguousCache(CONFIG, positions_max=LENGTH + AFTER)
    step = Step.of([Chunk(0, 0, text[:-1])], logits="all")
    streams = model().forward(step, contiguous).streams
    return model().draft(streams, torch.tensor(text[1:]), step, contiguous).logits


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5 * other.abs().max())


def check(length: int, chunk: int) -> None:
    text, expected = decoded()
    got, watched = run(text[:length], AFTER, chunk=chunk)
    assert got == text[: length + AFTER]
    assert sorted(watched.seen) == list(range(length - 1, length + AFTER - 1))
    for position, logits in watched.seen.items():
        assert close(logits, expected.seen[position]), f"position {position}, chunks of {chunk}"
    got, watched = run(text[:length], 1, chunk=chunk, speculate=True)
    assert got == text[: length + 1]
    assert close(watched.drafted[length - 1], plain_drafts()[length - 1]), f"draft, chunks of {chunk}"


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_is_decoding(length: int) -> None:
    check(length, LENGTH)
    check(length, random.Random(length).randrange(1 + length // 12, length + 1))


@pytest.mark.sweep
@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_prefill_is_decoding_for_every_length(length: int) -> None:
    check(length, LENGTH)
    check(length, random.Random(length).randrange(1, length + 1))
