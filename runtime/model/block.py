"""One layer: attention and experts, each between its mHC mixes (dsv4-reference §2, §17)."""

from __future__ import annotations

import torch

from dsv4.runtime.model.attention import attention
from dsv4.runtime.model.cache import LayerCache
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.moe import moe
from dsv4.runtime.model.numerics import Precision
from dsv4.runtime.model.plan import Plan
from dsv4.runtime.model.schedule import LayerSchedule
from dsv4.runtime.model.weights import BlockWeights, HeadMixWeights, StreamMixWeights
from dsv4.runtime.ops.mhc_head import mhc_head
from dsv4.runtime.ops.mhc_post import mhc_post
from dsv4.runtime.ops.mhc_post_pre import mhc_post_pre
from dsv4.runtime.ops.mhc_pre import mhc_pre


def block(
    streams: torch.Tensor,
    weights: BlockWeights,
    layer: LayerSchedule,
    plan: Plan,
    cache: LayerCache,
    config: ModelConfig,
    precision: Precision,
) -> torch.Tensor:
    """The streams [T, n, d] after the layer."""
    x, post, comb = mix(streams, weights.attention_mix, weights.attention_norm, config, precision)
    update = attention(x, weights.attention, layer, plan, cache, config, precision)
    streams, y, post, comb = mhc_post_pre(
        update,
        streams,
        post,
        comb,
        weights.ffn_mix.fn,
        weights.ffn_mix.base,
        weights.ffn_mix.scale,
        weights.ffn_norm,
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
        iterations=config.hc_sinkhorn_iters,
        dtype=precision.wide,
    )
    update = moe(y, weights.moe, plan.step, config, precision)
    return mhc_post(update, streams, post, comb, dtype=precision.wide)


def mix(
    streams: torch.Tensor, weights: StreamMixWeights, norm: torch.Tensor, config: ModelConfig, precision: Precision
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised input of a sub-layer, post and comb: ``mhc_pre`` with the model's constants."""
    return mhc_pre(
        streams,
        weights.fn,
        weights.base,
        weights.scale,
        norm,
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
        iterations=config.hc_sinkhorn_iters,
        dtype=precision.wide,
    )


def mix_head(
    streams: torch.Tensor, weights: HeadMixWeights, norm: torch.Tensor, config: ModelConfig, precision: Precision
) -> torch.Tensor:
    """The normalised input [T, d] of the LM head."""
    return mhc_head(
        streams,
        weights.fn,
        weights.base,
        weights.scale,
        norm,
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
        dtype=precision.wide,
    )
