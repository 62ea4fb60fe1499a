"""The multi-token-prediction layer: a draft of the token after the next one (dsv4-reference §10.2)."""

from __future__ import annotations

import torch

from dsv4.runtime.model.attention import project
from dsv4.runtime.model.block import block
from dsv4.runtime.model.cache import LayerCache
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Precision
from dsv4.runtime.model.plan import Plan
from dsv4.runtime.model.schedule import LayerSchedule
from dsv4.runtime.model.weights import MtpWeights
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.rms_norm_wide import rms_norm


def mtp_streams(
    streams: torch.Tensor,
    next_tokens: torch.Tensor,
    embedding: torch.Tensor,
    weights: MtpWeights,
    layer: LayerSchedule,
    plan: Plan,
    cache: LayerCache,
    config: ModelConfig,
    precision: Precision,
) -> torch.Tensor:
    """The streams [T, n, d] after the MTP layer.

    streams [T, n, d]: those that leave the last main layer. next_tokens i64 [T]: the token that follows each, so that
    token t stays at its own position. embedding [vocabulary, d] is the model's. As in the official code the embedding
    at position 0 counts like any other; some engines zero it.
    """
    eps, wide = config.rms_norm_eps, precision.wide
    tokens, count, width = streams.shape
    embedded = embed(next_tokens, embedding, streams=0, out_dtype=precision.activation)
    embedded = project(rms_norm(embedded, weights.enorm, eps, dtype=wide), weights.e_proj, precision)
    normed = rms_norm(streams.reshape(tokens * count, width), weights.hnorm, eps, dtype=wide)
    hidden = project(normed, weights.h_proj, precision).view(tokens, count, width)
    return block(embedded[:, None] + hidden, weights.block, layer, plan, cache, config, precision)
