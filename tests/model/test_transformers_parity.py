"""The model against that of Hugging Face transformers, in float32, on random configurations with each kind of layer.

Theirs reads the ``config.json`` that ours writes, and has the same random weights by its own names. Numerics are
``EXACT``, since theirs has none of the roundings of the official code. What was found is in docs/notes/model_parity.md.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, SamplingOptions
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.plan import frequencies
from dsv4.runtime.model.presets import FLASH, PRO
from dsv4.runtime.model.schedule import schedule
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.reference.rope import rope_table
from tests.model.drawn_configs import drawn_config
from tests.model.tiny_model import Maker, prompt

if TYPE_CHECKING:
    from transformers import DeepseekV4ForCausalLM

TOLERANCE = 1e-4
"""Of logits, relative to the largest; 1.5e-6 is the most that was seen."""
PROMPTS = {2: 480, 5: 63, 11: 118, 13: 250, 14: 100, 16: 210}
"""Seed and length of the prompt whose text is generated, most of them over the end of an HCA entry."""
NEW_TOKENS = 68


@cache
def ours(seed: int) -> Transformer:
    config = drawn_config(seed)
    return Transformer(config, Maker(config, seed).model())


@cache
def theirs(seed: int) -> DeepseekV4ForCausalLM:
    from tests.model.hf_weights import hf_model

    return hf_model(ours(seed).config, ours(seed).weights)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape and one.dtype == other.dtype == torch.float32
    return float((one - other).abs().max() / other.abs().max())


def lengths(seed: int) -> tuple[int, int, int]:
    draw = random.Random(1000 + seed)
    return draw.randrange(1, 10), draw.randrange(129, 261), draw.randrange(513, 641)


def check_prefill(seed: int, length: int) -> None:
    from tests.model.hf_choices import followed
    from tests.model.hf_weights import Sequence

    model, tokens = ours(seed), prompt(ours(seed).config, length, seed)
    with followed(theirs(seed)) as choices:
        step = Step.of([Chunk(0, 0, tokens)], logits="all")
        got = model.forward(step, ContiguousCache(model.config, positions_max=length)).logits
        expected = Sequence(theirs(seed)).step(tokens)
    assert difference(got, expected) < TOLERANCE
    room = 4 * model.config.index_topk
    csa = sum(layer.has_indexer for layer in model.main_layers)
    assert choices.selected == csa * max(0, length - room - 3), "queries that see more entries than may be chosen"
    dense = sum(layer.router == "dense" for layer in model.main_layers)
    assert choices.routed == dense * length and choices.ties <= 2


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("seed", PROMPTS)
def test_prefill(seed: int, which: int) -> None:
    check_prefill(seed, lengths(seed)[which])


@cache
def text(seed: int) -> tuple[int, ...]:
    """Their text after a prompt, token by token; ours is held to it at each step, with the logits."""
    from tests.model.hf_choices import followed
    from tests.model.hf_weights import Sequence

    model, sequence = ours(seed), Sequence(theirs(seed))
    length = PROMPTS.get(seed, lengths(seed)[1])
    cache = ContiguousCache(model.config, positions_max=length + NEW_TOKENS)
    chunk, written = Chunk(0, 0, prompt(model.config, length, seed)), []
    with followed(theirs(seed)):
        while len(written) < NEW_TOKENS:
            got = model.forward(Step.of([chunk]), cache).logits[0]
            expected = sequence.step(list(chunk.tokens))[-1]
            assert difference(got, expected) < TOLERANCE
            written.append(int(expected.argmax()))
            assert int(got.argmax()) == written[-1]
            chunk = Chunk(0, length + len(written) - 1, written[-1:])
    return tuple(written)


@pytest.mark.parametrize("seed", PROMPTS)
def test_decoding(seed: int) -> None:
    assert len(set(text(seed))) > 20, "a text that goes in circles would say little"


@pytest.mark.parametrize(("seed", "speculate"), [(seed, seed % 2 == 0) for seed in PROMPTS])
def test_text_of_the_engine(seed: int, speculate: bool) -> None:
    """Paged, in a batch with others, prefilled in chunks, with drafts and without: the same text."""
    draw, model = random.Random(seed), ours(seed)
    requests = [
        Request(prompt(model.config, length, number), SamplingOptions(max_new_tokens=count))
        for number, (length, count) in enumerate(((draw.randrange(1, 200), 20), (draw.randrange(1, 20), 5)), start=50)
    ]
    mine = Request(prompt(model.config, PROMPTS[seed], seed), SamplingOptions(max_new_tokens=NEW_TOKENS))
    requests.insert(1, mine)
    settings = CacheSettings(sequences=3, block=128, drafts=int(speculate), step_tokens=600)
    layout = CacheLayout.holding(model.config, settings, model.precision, max(220, PROMPTS[seed] + NEW_TOKENS))
    engine = Engine(model, PagedCache(layout), chunk=draw.randrange(20, 200), speculate=speculate)
    assert engine.generate(requests)[1].tokens == text(seed)


def check_drafts(seed: int) -> None:
    from tests.model import hf_mtp

    model = ours(seed)
    tokens = prompt(model.config, 140, seed)
    following = torch.tensor([*tokens[1:], 3])
    step, cache = Step.of([Chunk(0, 0, tokens)], logits="all"), ContiguousCache(model.config, positions_max=140)
    streams = model.forward(step, cache).streams
    got = model.draft(streams, following, step, cache)
    expected = hf_mtp.draft(model.config, model.weights, streams, following)
    for one, other in zip(got, expected, strict=True):
        assert difference(one, other) < TOLERANCE


@pytest.mark.parametrize("seed", PROMPTS)
def test_drafts(seed: int) -> None:
    """Of the MTP layer, against one put together from their modules; past its window."""
    check_drafts(seed)


@pytest.mark.parametrize("official", [FLASH, PRO], ids=["flash", "pro"])
def test_rotations_of_the_official_configurations(official: ModelConfig) -> None:
    """Of both kinds of layer, up to the last of a million positions, and the kind that each layer has."""
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

    from tests.model.hf_weights import hf_config

    config = hf_config(official)
    positions = torch.tensor([0, 1, 127, 4095, 65535, 65536, 1048575])
    assert int(positions[-1]) == official.max_position_embeddings - 1
    rotation, layers = DeepseekV4RotaryEmbedding(config), schedule(official)[: official.num_hidden_layers]
    names = {"swa": "sliding_attention", "csa": "compressed_sparse_attention", "hca": "heavily_compressed_attention"}
    assert [names[layer.kind] for layer in layers] == config.layer_types
    assert [{"hash": "hash_moe", "dense": "moe"}[layer.router] for layer in layers] == config.mlp_layer_types
    for rope, found in frequencies(schedule(official), "cpu").items():
        cosine, sine = rotation(torch.zeros(1), positions[None], "compress" if rope.yarn else "main")
        expected = torch.cat((cosine[0], sine[0]), dim=-1)
        torch.testing.assert_close(rope_table(positions, found), expected, rtol=0, atol=1e-6)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_configurations(seed: int) -> None:
    for length in lengths(seed):
        check_prefill(seed, length)
    text(seed)
    check_drafts(seed)
