"""What the comparison with transformers can see: on its configurations every tensor and every number moves the logits.

So an implementation that leaves one out, or takes one for another, would not agree with ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.model.weights import ModelWeights
from dsv4.runtime.weight import Weight
from tests.model.drawn_configs import drawn_config
from tests.model.test_transformers_parity import PROMPTS, TOLERANCE
from tests.model.tiny_model import Maker, prompt

SEED, TOKENS = 13, 150
NOTICED = 10 * TOLERANCE


@pytest.fixture(scope="module")
def model() -> tuple[ModelConfig, ModelWeights]:
    """One of the test's own configurations: the clamp and both eps are large, and its indexer has to choose."""
    config = drawn_config(SEED)
    assert SEED in PROMPTS and config.compress_ratios == (0, 0, 128, 4, 0) and config.num_hash_layers == 3
    assert config.hc_eps == config.rms_norm_eps == 0.01 and config.swiglu_limit < 2
    assert 4 * config.index_topk + 3 < TOKENS
    return config, Maker(config, SEED).model()


def logits(config: ModelConfig, weights: ModelWeights) -> torch.Tensor:
    cache, tokens = ContiguousCache(config, positions_max=TOKENS), prompt(config, TOKENS, SEED)
    return Transformer(config, weights).forward(Step.of([Chunk(0, 0, tokens)], logits="all"), cache).logits


def moved(one: torch.Tensor, base: torch.Tensor) -> float:
    return float((one - base).abs().max() / base.abs().max())


def other(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.roll(1, dims=0)
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) + 1
    return tensor + 0.2 * noise.to(tensor.dtype) * tensor.abs().mean()


def changed_one_by_one(container: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of ``container`` with one tensor replaced, each with its name; the MTP layer is left out."""
    if isinstance(container, Weight):
        yield path, Weight.plain(other(container.codes))
    elif isinstance(container, torch.Tensor):
        yield path, other(container)
    elif isinstance(container, tuple):
        for place, part in enumerate(container):
            for name, value in changed_one_by_one(part, f"{path}.{place}"):
                yield name, (*container[:place], value, *container[place + 1 :])
    elif dataclasses.is_dataclass(container) and not isinstance(container, type):
        for field in dataclasses.fields(container):
            if field.name != "mtp":
                for name, value in changed_one_by_one(getattr(container, field.name), f"{path}.{field.name}"):
                    yield name, dataclasses.replace(container, **{field.name: value})


@pytest.mark.sweep
def test_every_tensor(model: tuple[ModelConfig, ModelWeights]) -> None:
    config, weights = model
    base = logits(config, weights)
    found = {name: moved(logits(config, changed), base) for name, changed in changed_one_by_one(weights)}
    assert len(found) == 6 + 4 * 24 + 2 * 4 + 2 + 4  # ends, layers, compressors, indexer
    assert {name: size for name, size in found.items() if size < NOTICED} == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", 101.0),
        ("compress_rope_theta", 3030.0),
        ("sliding_window", 127),
        ("index_topk", 5),
        ("routed_scaling_factor", 1.6),
        ("swiglu_limit", 1.6),
        ("hc_sinkhorn_iters", 2),
        ("hc_eps", 0.011),
        ("rms_norm_eps", 0.011),
    ],
)
def test_every_number(model: tuple[ModelConfig, ModelWeights], field: str, value: float) -> None:
    config, weights = model
    assert getattr(config, field) != value
    assert moved(logits(config.replace(**{field: value}), weights), logits(config, weights)) > TOLERANCE


@pytest.mark.parametrize(
    ("field", "times"),
    [("factor", 2.0), ("beta_fast", 0.5), ("beta_slow", 2.0), ("original_max_position_embeddings", 2)],
)
def test_every_number_of_yarn(model: tuple[ModelConfig, ModelWeights], field: str, times: float) -> None:
    config, weights = model
    yarn = config.rope_scaling
    assert yarn is not None
    other_yarn = yarn.model_copy(update={field: times * getattr(yarn, field)})
    assert moved(logits(config.replace(rope_scaling=other_yarn), weights), logits(config, weights)) > TOLERANCE
