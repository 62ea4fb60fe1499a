"""Random consistent configurations, small in every direction, with each kind of layer; one a seed.

What the official sizes leave at 1e-6, 10 or 20 (eps, clamp, Sinkhorn steps) is drawn large or small enough here for its
place in the formulas to show in the logits.
"""

from __future__ import annotations

import random

from dsv4.runtime.model.config import ModelConfig, RopeScaling
from dsv4.runtime.model.presets import TINY


def drawn_config(seed: int, *, mtp: bool = True) -> ModelConfig:
    """All of SWA, CSA and HCA in random order, at least one dense router; the indexer selects from a few dozen tokens
    on, and has 16 heads or more, so that a score is hardly ever 0 by the ReLU of all of them."""
    draw = random.Random(seed)
    ratios = [0, 4, 128, *draw.choices((0, 4, 128), k=draw.randrange(3))]
    draw.shuffle(ratios)
    groups = draw.choice((1, 2, 4))
    head_dim = draw.choice((64, 96, 128, 512))
    index_head_dim = draw.choice((32, 64, 128))
    rotary = draw.choice([width for width in (16, 32, 64) if width < head_dim and width <= index_head_dim])
    experts = draw.randrange(6, 21)
    factor, original = draw.choice((4, 16)), draw.choice((400, 65536))
    return TINY.replace(
        vocab_size=draw.randrange(200, 400),
        hidden_size=32 * draw.randrange(2, 5),
        num_hidden_layers=len(ratios),
        num_nextn_predict_layers=int(mtp),
        num_attention_heads=groups * draw.choice((1, 2)),
        head_dim=head_dim,
        qk_rope_head_dim=rotary,
        q_lora_rank=32 * draw.randrange(1, 4),
        o_lora_rank=16 * draw.randrange(1, 4),
        o_groups=groups,
        index_n_heads=draw.choice((16, 24, 32)),
        index_head_dim=index_head_dim,
        index_topk=draw.choice((6, 9, 16, 40)),
        sliding_window=draw.choice((128, 128, 61)),
        compress_ratios=(*ratios, *[0] * mtp),
        rope_theta=draw.choice((100.0, 10000.0)),
        compress_rope_theta=draw.choice((3000.0, 160000.0)),
        rope_scaling=RopeScaling(factor=factor, beta_fast=32, beta_slow=1, original_max_position_embeddings=original),
        max_position_embeddings=factor * original,
        n_routed_experts=experts,
        num_experts_per_tok=draw.randrange(2, 7),
        moe_intermediate_size=32 * draw.randrange(1, 4),
        num_hash_layers=draw.randrange(len(ratios)),
        routed_scaling_factor=draw.choice((1.5, 2.5)),
        swiglu_limit=draw.choice((0.7, 1.5, 10.0)),
        hc_mult=draw.choice((4, 4, 3)),
        hc_sinkhorn_iters=draw.choice((1, 2, 20)),
        hc_eps=draw.choice((1e-6, 1e-2)),
        rms_norm_eps=draw.choice((1e-6, 1e-2)),
    )
