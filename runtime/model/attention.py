"""The attention sub-layer of every kind of layer: window only, CSA, HCA (dsv4-reference §4 – §8)."""

from __future__ import annotations

from typing import Any

import torch

from dsv4.runtime.model.cache import LayerCache
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Precision
from dsv4.runtime.model.plan import Plan, RatioPlan
from dsv4.runtime.model.schedule import LayerSchedule
from dsv4.runtime.model.weights import AttentionWeights, CompressorWeights, IndexerWeights
from dsv4.runtime.ops.compressor import compressor
from dsv4.runtime.ops.grouped_output import grouped_output
from dsv4.runtime.ops.indexer_q import indexer_q, indexer_q_folded
from dsv4.runtime.ops.indexer_scores import indexer_scores
from dsv4.runtime.ops.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.ops.linear import linear
from dsv4.runtime.ops.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.rms_norm_wide import rms_norm
from dsv4.runtime.ops.sparse_attention import sparse_attention
from dsv4.runtime.ops.topk import topk
from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.pages import Fake
from dsv4.runtime.weight import Quantized, Weight


def attention(
    x: torch.Tensor,
    weights: AttentionWeights,
    layer: LayerSchedule,
    plan: Plan,
    cache: LayerCache,
    config: ModelConfig,
    precision: Precision,
) -> torch.Tensor:
    """The output [T, d] of attention for the normalised input x [T, d]; keys, entries and states go to ``cache``."""
    wide, narrow, eps = precision.wide, precision.activation, config.rms_norm_eps
    cos_sin = plan.cos_sin[layer.rope]
    low = project(x, weights.wq_a, precision)
    low = rms_norm(low, weights.q_norm, eps, dtype=wide)
    q = project(low, weights.wq_b, precision).view(-1, config.num_attention_heads, config.head_dim)
    kv = project(x, weights.wkv, precision)
    q = q_norm_rope_kv_insert(
        q,
        kv,
        weights.kv_norm,
        cos_sin,
        cache.window,
        plan.window_write,
        eps=eps,
        stage_dtype=precision.stage,
        fake_quantize=precision.fakes_kv,
        dtype=wide,
        out_dtype=narrow,
    )
    rows = None
    if layer.has_compressor:
        assert weights.compressor is not None and cache.compressed is not None and cache.state is not None
        ratio_plan = plan.ratios[layer.ratio]
        compress(
            x, weights.compressor, ratio_plan, cache.compressed, cache.state, precision, eps, fake=precision.fake_kv
        )
        rows = ratio_plan.read_rows
        if layer.has_indexer:
            assert weights.indexer is not None
            rows = select(x, low, weights.indexer, layer, plan, cache, config, precision)
    out, _ = sparse_attention(
        q,
        cache.window,
        plan.window_read,
        cache.compressed,
        rows,
        weights.sink,
        softmax_scale=config.head_dim**-0.5,
        probability_dtype=precision.probability,
        dtype=wide,
        out_dtype=narrow,
    )
    quantizes = precision.quantizes_output and precision.rule(weights.wo_a.format) == "fp8_128"
    grouped = inverse_rope_quant(out, cos_sin, groups=config.o_groups, quantize=quantizes, dtype=wide, out_dtype=narrow)
    z = grouped_output(grouped, weights.wo_a, dtype=wide, out_dtype=narrow)
    return project(z, weights.wo_b, precision)


def project(
    x: torch.Tensor | Quantized, weight: Weight, precision: Precision, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x through a linear, quantised before it as the weight's format asks; in ``out_dtype``, else an activation."""
    if isinstance(x, torch.Tensor):
        x = quantize(x, weight, rule=precision.rule(weight.format))
    return linear(x, weight, dtype=precision.wide, out_dtype=out_dtype or precision.activation)


def compress(
    x: torch.Tensor,
    weights: CompressorWeights,
    plan: RatioPlan,
    pool: Pool,
    state: torch.Tensor,
    precision: Precision,
    eps: float,
    *,
    fake: Fake,
    rotates: bool = False,
) -> None:
    """Write the entries that x [T, d] completes into ``pool`` and its last tokens into ``state``."""
    compressor(
        project(x, weights.wkv, precision, precision.wide),
        project(x, weights.wgate, precision, precision.wide),
        weights.ape,
        weights.norm,
        plan.entry_cos_sin,
        state,
        pool,
        plan.compression,
        eps=eps,
        rotate_hadamard=rotates,
        stage_dtype=precision.stage,
        fake=fake,
        dtype=precision.wide,
    )


def select(
    x: torch.Tensor,
    low: torch.Tensor,
    weights: IndexerWeights,
    layer: LayerSchedule,
    plan: Plan,
    cache: LayerCache,
    config: ModelConfig,
    precision: Precision,
) -> torch.Tensor:
    """The rows i32 [T, K] of the compressed pool that the indexer chooses for each token, −1 past the end.

    x [T, d] is the layer's normalised input, ``low`` [T, q_lora] the normalised low-rank query that the main queries
    come from too. Where no token can see more entries than may be chosen, all visible ones are, and scores are not
    computed.
    """
    assert cache.index is not None and cache.index_state is not None
    shared = plan.ratios[layer.ratio]
    compress(
        x,
        weights.compressor,
        shared,
        cache.index,
        cache.index_state,
        precision,
        config.rms_norm_eps,
        fake=precision.fake_index,
        rotates=precision.rotates_index,
    )
    if shared.entry_rows.shape[1] <= layer.index_topk:
        return shared.read_rows
    heads, width = config.index_n_heads, config.index_head_dim
    queries = project(low, weights.wq_b, precision).view(-1, heads, width)
    head_weights = project(x, weights.weights_proj, precision, precision.stage or precision.wide)
    scale = width**-0.5 * heads**-0.5
    how: dict[str, Any] = {
        "code": precision.index_code(cache.index),
        "rotate_hadamard": precision.rotates_index,
        "dtype": precision.wide,
        "out_dtype": precision.activation,
    }
    cos_sin = plan.cos_sin[layer.rope]
    if precision.folds_index_weights:
        q, head_weights = indexer_q_folded(queries, cos_sin, head_weights, scale=scale, **how)
    else:
        q = indexer_q(queries, cos_sin, stage_dtype=precision.stage, **how)
    scores = indexer_scores(
        q,
        head_weights,
        cache.index,
        shared.entry_rows,
        shared.visible,
        plan.step.lengths,
        scale=1.0 if precision.folds_index_weights else scale,
        folded=precision.folds_index_weights,
        stage_dtype=precision.stage,
        dtype=precision.wide,
    )
    chosen = topk(scores, shared.visible, k=layer.index_topk).to(torch.int64)
    rows = shared.entry_rows[plan.step.sequence[:, None], chosen.clamp(min=0)]
    return rows.masked_fill(chosen < 0, -1).to(torch.int32)
