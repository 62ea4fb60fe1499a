"""The forward pass against ``naive``, which was written from dsv4-reference without anything of the runtime."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pytest
import torch

from dsv4.runtime.kv.settings import formats_for
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Forward, Transformer
from dsv4.runtime.model.weights import ModelWeights
from dsv4.runtime.weight import Format
from tests.model.naive import Naive
from tests.model.tiny_model import SMALL, Maker, prompt

Wanted = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Streams, logits, streams of the drafts."""
LENGTH = 132
"""HCA has an entry from 127 on, CSA chooses 8 of up to 33 entries from position 35 on."""


def run(model: Transformer, tokens: list[int]) -> tuple[Forward, Forward]:
    """Streams and logits of all tokens, and of the MTP layer with each token's successor (the last one's is 0)."""
    kv, index = formats_for(model.precision.numerics, model.config)
    cache = ContiguousCache(model.config, positions_max=len(tokens), precision=model.precision, kv=kv, index=index)
    step = Step.of([Chunk(0, 0, tokens)], logits="all")
    forward = model.forward(step, cache)
    return forward, model.draft(forward.streams, torch.tensor([*tokens[1:], 0]), step, cache)


@pytest.fixture(scope="module")
def expected() -> tuple[torch.Tensor, ...]:
    weights, tokens = Maker(SMALL).model(), prompt(SMALL, LENGTH)
    naive = Naive(SMALL, weights)
    streams, logits = naive.forward(tokens)
    return streams, logits, *naive.draft(streams, [*tokens[1:], 0])


def test_exact_in_float64(expected: tuple[torch.Tensor, ...]) -> None:
    model = Transformer(SMALL, Maker(SMALL).model(), wide=torch.float64)
    forward, draft = run(model, prompt(SMALL, LENGTH))
    for got, wanted in zip((*forward, *draft), expected, strict=True):
        assert got.dtype == torch.float64 and got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_exact_in_float32(expected: tuple[torch.Tensor, ...]) -> None:
    model = Transformer(SMALL, Maker(SMALL).model())
    forward, draft = run(model, prompt(SMALL, LENGTH))
    for got, wanted in zip((*forward, *draft), expected, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


WIDE = SMALL.replace(head_dim=512, q_lora_rank=128, o_lora_rank=64, moe_intermediate_size=128, num_hash_layers=1)
"""Head and linear widths that the quantisers' blocks divide."""


@cache
def rounded(name: Literal["official", "engine"], ratio: int, length: int) -> tuple[ModelConfig, ModelWeights, Wanted]:
    """One layer of a kind and the MTP layer, in the formats of the release; and what ``Naive`` makes of a prompt."""
    config = WIDE.replace(compress_ratios=(ratio, 0), num_hidden_layers=1)
    weights = Maker(config, 2, dtype=torch.bfloat16, dense=Format.FP8_BLOCK, routed=Format.MXFP4).model()
    naive, tokens = Naive(config, weights, name), prompt(config, length)
    streams, logits = naive.forward(tokens)
    return config, weights, (streams, logits, naive.draft(streams, [*tokens[1:], 0])[0])


@pytest.mark.parametrize(("ratio", "length"), [(0, 30), (4, 40), (128, 131)])
@pytest.mark.parametrize("name", ["official", "engine"])
def test_roundings_bit_for_bit(name: Literal["official", "engine"], ratio: int, length: int) -> None:
    """In float64, where two ways of adding up hardly ever round to different sides."""
    config, weights, (streams, logits, drafts) = rounded(name, ratio, length)
    tokens = prompt(config, length)
    forward, draft = run(Transformer(config, weights, numerics=Numerics(name), wide=torch.float64), tokens)
    for got, expected in ((forward.streams, streams), (draft.streams, drafts)):
        assert got.dtype == torch.bfloat16 and (got.double() == expected).double().mean() > 0.9999
    assert (forward.logits - logits).norm() < 1e-4 * logits.norm()
    exact, _ = run(Transformer(config, weights, wide=torch.float64), tokens)
    assert 0.03 < (exact.streams - streams).norm() / streams.norm() < 0.1  # so that what is above says something
    other = Numerics.ENGINE if name == "official" else Numerics.OFFICIAL
    otherwise, _ = run(Transformer(config, weights, numerics=other, wide=torch.float64), tokens)
    assert (otherwise.streams.double() == streams).double().mean() < 0.2


def test_official_roundings_in_float32() -> None:
    """A value rounds the other way now and then, depending on the processor, and others follow it; what is left of
    that is small beside the roundings themselves."""
    config, weights, (streams, logits, drafts) = rounded("official", 4, 40)
    forward, draft = run(Transformer(config, weights, numerics=Numerics.OFFICIAL), prompt(config, 40))
    assert forward.streams.dtype == torch.bfloat16 and forward.logits.dtype == torch.float32
    for got, expected in ((forward.streams, streams), (draft.streams, drafts), (forward.logits, logits)):
        assert (got.double() - expected).norm() < 0.02 * expected.norm()


def test_precision_says_what_the_caches_hold() -> None:
    assert Precision(Numerics.EXACT).activation == torch.float32
    assert Precision(Numerics.EXACT, torch.float64).activation == torch.float64
    assert Precision(Numerics.OFFICIAL).activation == Precision(Numerics.ENGINE).activation == torch.bfloat16
