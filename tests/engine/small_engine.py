"""Engines on a small random model, and what their text should be by the plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, Result, SamplingOptions
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.ops.sample import sample
from tests.model.tiny_model import SMALL, Maker, prompt

CONFIG = SMALL.replace(hidden_size=64, num_attention_heads=2, head_dim=64, qk_rope_head_dim=32, index_n_heads=16)
POSITIONS = 256


@cache
def model() -> Transformer:
    return Transformer(CONFIG, Maker(CONFIG, seed=3).model())


def engine(
    *,
    sequences: int = 4,
    speculate: bool = False,
    chunk: int = 512,
    blocks: int | None = None,
    positions: int = POSITIONS,
) -> Engine:
    settings = CacheSettings(
        sequences=sequences, block=128, drafts=1 if speculate else 0, step_tokens=256, positions_max=positions
    )
    layout = CacheLayout.holding(CONFIG, settings, model().precision, positions)
    if blocks is not None:
        layout = CacheLayout(CONFIG, settings, model().precision, blocks)
    return Engine(model(), PagedCache(layout), chunk=chunk, speculate=speculate)


def text(length: int, seed: int = 1) -> list[int]:
    return prompt(CONFIG, length, seed)


def by_itself(tokens: Sequence[int], options: SamplingOptions, **made: int | bool) -> Result:
    """What an engine of its own gives."""
    (result,) = engine(sequences=1, **made).generate([Request(tokens, options)])  # type: ignore[arg-type]
    return result


def alone(tokens: Sequence[int], options: SamplingOptions, **made: int | bool) -> Result:
    """The same, once for each question."""
    return _alone(tuple(tokens), options, tuple(made.items()))


@cache
def _alone(tokens: tuple[int, ...], options: SamplingOptions, made: tuple[tuple[str, int | bool], ...]) -> Result:
    return by_itself(tokens, options, **dict(made))


def plain_text(tokens: Sequence[int], options: SamplingOptions) -> list[int]:
    """The text by the forward pass on a contiguous cache, token by token, without an engine."""
    cache = ContiguousCache(CONFIG, positions_max=POSITIONS)
    written = list(tokens)
    chunk = Chunk(0, 0, tuple(tokens))
    for _ in range(options.max_new_tokens):
        logits = model().forward(Step.of([chunk], reach=POSITIONS), cache).logits
        drawn = sample(
            logits,
            torch.tensor([options.temperature]),
            torch.tensor([options.top_k]),
            torch.tensor([options.top_p]),
            torch.tensor([options.seed]),
            torch.tensor([len(written)]),
        )
        written.append(int(drawn))
        chunk = Chunk(0, len(written) - 1, written[-1:])
    return written[len(tokens) :]
