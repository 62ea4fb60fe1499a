"""The mixture-of-experts sub-layer: router, routed experts, shared expert (dsv4-reference §9)."""

from __future__ import annotations

import torch

from dsv4.runtime.model.attention import project
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Precision
from dsv4.runtime.model.step import Step
from dsv4.runtime.model.weights import ExpertWeights, MoeWeights
from dsv4.runtime.ops.experts import experts
from dsv4.runtime.ops.moe_combine import moe_combine
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.router import router
from dsv4.runtime.ops.swiglu_quant import swiglu_quant
from dsv4.runtime.routing import is_compiling

SYNC_FREE_TOKENS_MAX = 32
"""On a GPU, decoding steps of up to so many tokens fetch experts row by row; larger ones only where they must."""


def moe(y: torch.Tensor, weights: MoeWeights, step: Step, config: ModelConfig, precision: Precision) -> torch.Tensor:
    """The output [T, d] for the normalised input y [T, d]."""
    wide, narrow = precision.wide, precision.activation
    ids, route_weights = router(
        y,
        weights.router.weight,
        k=config.num_experts_per_tok,
        factor=config.routed_scaling_factor,
        bias=weights.router.bias,
        tid2eid=weights.router.tid2eid,
        tokens=step.tokens if weights.router.tid2eid is not None else None,
        dtype=wide,
    )
    routed = experts(
        y,
        ids,
        route_weights,
        weights.experts.w1,
        weights.experts.w3,
        weights.experts.w2,
        limit=config.swiglu_limit,
        rule=precision.rule(weights.experts.w1.format),
        stage_dtype=narrow,
        round_hidden=precision.rounds_hidden,
        sync_free=_sync_free(step),
        dtype=wide,
        out_dtype=narrow,
    )
    return moe_combine(routed, shared_expert(y, weights.shared, config, precision), dtype=wide, out_dtype=narrow)


def shared_expert(y: torch.Tensor, weights: ExpertWeights, config: ModelConfig, precision: Precision) -> torch.Tensor:
    """The expert that every token goes through, [T, d]: the same clamps as the routed ones, weight 1."""
    rule = precision.rule(weights.w1.format)
    # with NVFP4 each weight has an input scale of its own
    shared_input = y if rule == "nvfp4" else quantize(y, weights.w1, rule=rule)
    gate = project(shared_input, weights.w1, precision)
    up = project(shared_input, weights.w3, precision)
    unrounded = not precision.rounds_hidden and precision.rule(weights.w2.format) == "fp8_128"
    h = swiglu_quant(
        gate,
        up,
        limit=config.swiglu_limit,
        block=128 if unrounded else 0,
        dtype=precision.wide,
        out_dtype=precision.activation,
    )
    return project(h, weights.w2, precision)


def _sync_free(step: Step) -> bool:
    if is_compiling():
        return True
    if step.device.type != "cuda" or not step.is_decode:
        return False
    return step.tokens.shape[0] <= SYNC_FREE_TOKENS_MAX or torch.cuda.is_current_stream_capturing()
