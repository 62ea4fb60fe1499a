"""Mistakes that other implementations of this model have made (dsv4-reference §15, §16), at the level of the model.

Those of single operators are tested beside them in tests/reference: the sink as a column (test_sparse_attention), the
transposed residual matrix and its eps (test_mhc), hash routing by the learned gate and the factor applied once
(test_moe), clamps (test_moe), two projections of the CSA compressor (test_compressor), FP8 by 64 dimensions
(test_pages); visibility of entries in prefill is in test_plan, rows of a batch in test_forward.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.moe import shared_expert
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.model.weights import ExpertWeights, ModelWeights
from dsv4.runtime.pool import Pool, PoolFormat, page_bytes
from dsv4.runtime.reference.pages import fake_quantize, read_rows, write_rows
from dsv4.runtime.weight import Format, Weight
from tests.model.tiny_model import SMALL, TINY, Maker, prompt


def streams(config: ModelConfig, weights: ModelWeights, length: int = 130) -> torch.Tensor:
    cache = ContiguousCache(config, positions_max=length)
    return Transformer(config, weights).forward(Step.of([Chunk(0, 0, prompt(config, length))]), cache).streams


@pytest.mark.parametrize(("ratio", "own", "other"), [(0, "rope_theta", "compress_rope_theta")] + [
    (ratio, "compress_rope_theta", "rope_theta") for ratio in (4, 128)
])  # fmt: skip
def test_each_kind_of_layer_has_its_own_theta(ratio: int, own: str, other: str) -> None:
    """Layers with a compressor rotate everything, the window too, by the long-context frequencies."""
    config = SMALL.replace(num_hidden_layers=1, compress_ratios=(ratio, 0), num_hash_layers=0)
    weights = Maker(config).model()
    base = streams(config, weights)
    assert torch.equal(streams(config.replace(**{other: 777.0}), weights), base)
    changed = streams(config.replace(**{own: 777.0}), weights)
    assert (changed[:3] - base[:3]).abs().max() > 1e-4  # before any entry exists, so it is the window's rotation
    yarn = config.rope_scaling
    assert yarn is not None
    stretched = config.replace(rope_scaling=yarn.model_copy(update={"factor": 2.0}))
    assert torch.equal(streams(stretched, weights), base) == (ratio == 0)


@pytest.mark.parametrize("ratio", [4, 128])
def test_compressed_layers_see_the_window_too(ratio: int) -> None:
    """Changing a token that is in the window but in no complete entry changes the next one's output."""
    config = SMALL.replace(num_hidden_layers=1, compress_ratios=(ratio, 0), num_hash_layers=0)
    model = Transformer(config, Maker(config).model())
    tokens = prompt(config, 130)
    changed = [*tokens[:-2], (tokens[-2] + 1) % config.vocab_size, tokens[-1]]
    last = [
        model.forward(Step.of([Chunk(0, 0, text)]), ContiguousCache(config, positions_max=130)).streams[-1]
        for text in (tokens, changed)
    ]
    assert (last[0] - last[1]).abs().max() > 1e-3


def test_the_shared_expert_is_clamped() -> None:
    config = SMALL.replace(swiglu_limit=0.5)
    inner, width = config.moe_intermediate_size, config.hidden_size
    w1, w3, w2 = (torch.randn(*shape) for shape in ((inner, width), (inner, width), (width, inner)))
    weights = ExpertWeights(*(Weight.plain(w) for w in (w1, w3, w2)))
    y = torch.randn(5, width)
    got = shared_expert(y, weights, config, Precision(Numerics.EXACT))
    gate, up = (y @ w1.T).clamp(max=0.5), (y @ w3.T).clamp(-0.5, 0.5)
    torch.testing.assert_close(got, (torch.nn.functional.silu(gate) * up) @ w2.T, rtol=1e-4, atol=1e-4)


def test_mtp_experts_may_have_another_format_than_the_main_ones() -> None:
    """NVIDIA's checkpoints leave the MTP layer's experts in MXFP4."""
    config = TINY.replace(
        vocab_size=32,
        hidden_size=128,
        num_attention_heads=2,
        q_lora_rank=128,
        o_lora_rank=64,
        num_hidden_layers=1,
        compress_ratios=(0, 0),
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        num_hash_layers=0,
    )
    options = {"dtype": torch.bfloat16, "dense": Format.FP8_BLOCK}
    main = Maker(config, routed=Format.NVFP4, **options).model()  # type: ignore[arg-type]
    other = Maker(config, routed=Format.MXFP4, **options).model()  # type: ignore[arg-type]
    assert main.mtp is not None and other.mtp is not None
    model = Transformer(config, replace(main, mtp=other.mtp), numerics=Numerics.OFFICIAL)
    cache = ContiguousCache(config, positions_max=8, precision=model.precision)
    step = Step.of([Chunk(0, 0, prompt(config, 8))])
    forward = model.forward(step, cache)
    assert forward.logits.isfinite().all()
    assert model.draft(forward.streams, step.tokens, step, cache).logits.isfinite().all()


@pytest.mark.parametrize("format", [PoolFormat.PLAIN, PoolFormat.KV_FP8])
def test_rows_past_two_to_the_31(format: PoolFormat) -> None:
    """Row numbers are 32 bits wide, elements of a pool are counted in more. The memory is reserved, hardly touched."""
    page = 64
    if format is PoolFormat.PLAIN:
        rows = 2**31 // 512 + 1000
        pool = Pool(torch.empty(rows // page + 1, page, 512, dtype=torch.bfloat16), format, page)
    else:
        rows = 2**31 // 584 + 1000
        pool = Pool(torch.empty(rows // page + 1, page_bytes(format, page), dtype=torch.uint8), format, page)
    values = torch.randn(2, 512).bfloat16()
    at = torch.tensor([rows - 1, 3], dtype=torch.int32)
    write_rows(pool, at, values)
    expected = values if format is PoolFormat.PLAIN else fake_quantize(values, "fq64")
    assert torch.equal(read_rows(pool, at, dtype=torch.bfloat16), expected)


def test_positions_up_to_a_million() -> None:
    """Angles are computed, not looked up in a table; a decoding step at the last position works."""
    config = SMALL.replace(num_hidden_layers=1, compress_ratios=(0, 0), num_hash_layers=0)
    last = config.max_position_embeddings - 1

    class Far(ContiguousCache):
        @property
        def positions_max(self) -> int:
            return last + 1

    cache = Far(config, positions_max=512, ring=256)
    model = Transformer(config, Maker(config).model())
    far = model.forward(Step.of([Chunk(0, last - 9, prompt(config, 10))]), cache).streams
    assert far.isfinite().all()
    near = model.forward(Step.of([Chunk(0, 0, prompt(config, 10))]), ContiguousCache(config, positions_max=16)).streams
    # ten tokens alone: attention sees distances only, so the place matters by the rounding of the angles alone
    cache = Far(config, positions_max=512, ring=256)
    cache.window_rows = lambda slots, positions: ContiguousCache.window_rows(  # type: ignore[method-assign]
        cache, slots, positions.masked_fill(positions < last - 9, -1)
    )
    alone = model.forward(Step.of([Chunk(0, last - 9, prompt(config, 10))]), cache).streams
    assert (alone - near).abs().max() < 0.05 * near.abs().max()
