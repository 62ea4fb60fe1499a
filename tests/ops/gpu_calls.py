"""Calls of the bandwidth-bound operators on a GPU, in the sizes of Flash, for any number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from dsv4.runtime.ops.compressor import compressor
from dsv4.runtime.ops.dequantize import dequantize
from dsv4.runtime.ops.dequantize_blocks import dequantize_blocks
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.expert_offsets import CTA_ROUTES, expert_offsets
from dsv4.runtime.ops.indexer_q import indexer_q, indexer_q_folded
from dsv4.runtime.ops.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.ops.inverse_rope_quant_blocks import inverse_rope_quant_blocks
from dsv4.runtime.ops.mhc_head import mhc_head
from dsv4.runtime.ops.mhc_post import mhc_post
from dsv4.runtime.ops.mhc_post_pre import mhc_post_pre
from dsv4.runtime.ops.mhc_pre import mhc_pre
from dsv4.runtime.ops.moe_combine import moe_combine
from dsv4.runtime.ops.moe_combine_rows import moe_combine_rows
from dsv4.runtime.ops.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.quantize_blocks import quantize_blocks
from dsv4.runtime.ops.rms_norm import rms_norm
from dsv4.runtime.ops.rms_norm_quant import rms_norm_quant
from dsv4.runtime.ops.rms_norm_quant_blocks import rms_norm_quant_blocks
from dsv4.runtime.ops.router import (
    GATE_GEMM_PARTS,
    GATE_GEMM_TOKENS,
    LOGITS_GEMM_TOKENS,
    ONE_LAUNCH_TOKENS,
    SPLITS_MAX,
    logit_parts,
    router,
)
from dsv4.runtime.ops.swiglu_quant import swiglu_quant, swiglu_quant_joined
from dsv4.runtime.ops.swiglu_quant_blocks import swiglu_quant_blocks
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import quantize_blocks as blocks_reference
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.quantize import fp8_weight, quantize_fp8

DEVICE = "cuda"
COLUMNS, HEADS, EXPERTS, K, VOCABULARY = 4096, 64, 256, 6, 1000
RATIO = 4
"""Tokens of a compressed entry."""


class GpuCall(NamedTuple):
    """``make(tokens)`` gives the arguments; ``workspace(tokens)`` is in bytes, one number a tensor."""

    function: Callable[..., Any]
    make: Callable[[int], tuple[Any, ...]]
    options: Callable[[int], dict[str, Any]] = lambda tokens: {}
    workspace: Callable[[int], tuple[int, ...]] = lambda tokens: ()


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def f32(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device=DEVICE)


def ints(*shape: int, high: int) -> torch.Tensor:
    return torch.randint(high, shape, device=DEVICE)


def table(rows: int) -> torch.Tensor:
    angle = f32(rows, 32) * 6
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def mix(outputs: int = 24) -> tuple[torch.Tensor, ...]:
    scales = 3 if outputs == 24 else 1
    fn = normal(outputs, 4 * COLUMNS, dtype=torch.float32) / 128
    return fn, f32(outputs), f32(scales), 1 + 0.1 * normal(COLUMNS)


def residual(tokens: int) -> tuple[torch.Tensor, ...]:
    return normal(tokens, COLUMNS), normal(tokens, 4, COLUMNS), f32(tokens, 4), f32(tokens, 4, 4)


def insertion(tokens: int) -> tuple[Any, ...]:
    """Rows in any order, every fifth token not stored."""
    pool = Pool.allocate(tokens + 7, format=PoolFormat.KV_FP8, page=4, device=DEVICE)
    rows = torch.randperm(tokens + 7, device=DEVICE)[:tokens]
    rows[1::5] = -1
    return normal(tokens, HEADS, 512), normal(tokens, 512), normal(512), table(tokens), pool, rows


def compression(tokens: int) -> tuple[Any, ...]:
    """One sequence from position 3 on; of the tokens before, the state holds the last four."""
    first = 3
    entries = (first + tokens) // RATIO - first // RATIO
    last = RATIO * (first // RATIO + torch.arange(entries, device=DEVICE)[:, None] + 1) - 1
    position = last - 2 * RATIO + 1 + torch.arange(2 * RATIO, device=DEVICE)
    fresh = torch.where(position >= first, position - first, -1)
    stored = torch.where((position >= 0) & (position < first), position, -1)
    positions = first + torch.arange(tokens, device=DEVICE)
    kept = torch.where(positions >= first + tokens - 4, 4 + positions % 4, -1)
    rows = torch.arange(entries, device=DEVICE).flip(0)
    plan = Compression(positions % RATIO, fresh, stored, rows, kept)
    pool = Pool.allocate(entries + 1, format=PoolFormat.KV_FP8, page=4, device=DEVICE)
    products = normal(tokens, 1024, dtype=torch.float32), normal(tokens, 1024, dtype=torch.float32)
    state = normal(9, 2048, dtype=torch.float32)
    return (*products, f32(4, 1024), 1 + 0.1 * normal(512), table(entries), state, pool, plan)


def gate(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Small whole numbers, few of them: sums are exact in any order, and many scores are equal."""
    y = torch.randint(-1, 2, (tokens, COLUMNS), device=DEVICE) * (torch.arange(COLUMNS, device=DEVICE) % 97 == 5)
    return y.bfloat16(), torch.randint(-1, 2, (EXPERTS, COLUMNS), device=DEVICE).bfloat16()


def routing(by_table: bool) -> Callable[[int], dict[str, Any]]:
    def options(tokens: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"bias": torch.zeros(EXPERTS, device=DEVICE)}
        if by_table:
            named = f32(VOCABULARY, EXPERTS).argsort(dim=1)[:, :K]
            choice = {"tid2eid": named, "tokens": ints(tokens, high=VOCABULARY)}
        return {"k": K, "factor": 1.5, **choice}

    return options


def routing_workspace(by_table: bool) -> Callable[[int], tuple[int, ...]]:
    def workspace(tokens: int) -> tuple[int, ...]:
        if by_table:
            return (4 * math.prod(GATE_GEMM_PARTS),) if tokens >= GATE_GEMM_TOKENS else ()
        gemm = tokens >= LOGITS_GEMM_TOKENS
        parts = SPLITS_MAX if tokens <= ONE_LAUNCH_TOKENS else logit_parts(tokens, COLUMNS, gemm=gemm)
        return (4 * parts * tokens * EXPERTS,)

    return workspace


def constant(**options: Any) -> Callable[[int], dict[str, Any]]:
    return lambda tokens: options


def outer() -> torch.Tensor:
    return torch.tensor(0.002, device=DEVICE)


def fp8() -> Any:
    return fp8_weight(torch.randn(4, COLUMNS, device=DEVICE))


CALLS: dict[str, GpuCall] = {
    "embed": GpuCall(embed, lambda tokens: (ints(tokens, high=5), normal(5, COLUMNS))),
    "mhc_pre": GpuCall(mhc_pre, lambda tokens: (normal(tokens, 4, COLUMNS), *mix())),
    "mhc_post": GpuCall(mhc_post, residual),
    "mhc_post_pre": GpuCall(mhc_post_pre, lambda tokens: (*residual(tokens), *mix())),
    "mhc_head": GpuCall(mhc_head, lambda tokens: (normal(tokens, 4, COLUMNS), *mix(4))),
    "rms_norm": GpuCall(rms_norm, lambda tokens: (normal(tokens, COLUMNS), normal(COLUMNS))),
    "rms_norm_quant": GpuCall(
        rms_norm_quant, lambda tokens: (normal(tokens, COLUMNS), normal(COLUMNS)), constant(rule="fp8_128")
    ),
    "q_norm_rope_kv_insert": GpuCall(q_norm_rope_kv_insert, insertion),
    "compressor": GpuCall(compressor, compression),
    "indexer_q": GpuCall(
        indexer_q,
        lambda tokens: (normal(tokens, 64, 128), table(tokens)),
        constant(code="fp4", rotate_hadamard=True),
    ),
    "indexer_q_folded": GpuCall(
        indexer_q_folded,
        lambda tokens: (normal(tokens, 64, 128), table(tokens), normal(tokens, 64, dtype=torch.float32)),
        constant(scale=0.011, code="fp8", rotate_hadamard=True),
    ),
    "inverse_rope_quant": GpuCall(
        inverse_rope_quant,
        lambda tokens: (normal(tokens, HEADS, 512), table(tokens)),
        constant(groups=8, quantize=True),
    ),
    "router": GpuCall(router, gate, routing(by_table=False), routing_workspace(by_table=False)),
    "router by a table": GpuCall(router, gate, routing(by_table=True), routing_workspace(by_table=True)),
    "expert_offsets": GpuCall(
        expert_offsets,
        lambda tokens: (ints(tokens, K, high=EXPERTS).int(),),
        constant(count=EXPERTS, align=128),
        lambda tokens: (4 * EXPERTS * -(-tokens * K // CTA_ROUTES),),
    ),
    "quantize": GpuCall(quantize, lambda tokens: (normal(tokens, COLUMNS), fp8()), constant(rule="fp8_128")),
    "dequantize": GpuCall(dequantize, lambda tokens: (quantize_fp8(normal(tokens, COLUMNS)),)),
    "swiglu_quant": GpuCall(
        swiglu_quant_joined,
        lambda tokens: (normal(tokens, 4096), f32(tokens)),
        constant(limit=10.0, block=128),
    ),
    "swiglu_quant of two tensors": GpuCall(
        swiglu_quant, lambda tokens: (normal(tokens, 2048), normal(tokens, 2048)), constant(limit=10.0, block=128)
    ),
    "moe_combine": GpuCall(moe_combine, lambda tokens: (normal(tokens, 6, COLUMNS), normal(tokens, COLUMNS))),
    "moe_combine gathered": GpuCall(
        moe_combine_rows,
        lambda tokens: (
            normal(5 * tokens + 3, COLUMNS),
            ints(tokens, 6, high=5 * tokens + 4).int() - 1,
            normal(tokens, COLUMNS),
        ),
    ),
    "quantize nvfp4 in tiles": GpuCall(
        quantize_blocks,
        lambda tokens: (normal(tokens, COLUMNS), outer()),
        constant(format="nvfp4", scale_layout="swizzled_128x4"),
    ),
    "rms_norm_quant nvfp4 in tiles": GpuCall(
        rms_norm_quant_blocks,
        lambda tokens: (normal(tokens, COLUMNS), 1 + 0.1 * normal(COLUMNS), outer()),
        constant(format="nvfp4", scale_layout="swizzled_128x4", with_y=True),
    ),
    "swiglu_quant nvfp4 in tiles": GpuCall(
        swiglu_quant_blocks,
        lambda tokens: (normal(tokens, 4096), f32(tokens), outer()),
        constant(limit=10.0, format="nvfp4", scale_layout="swizzled_128x4"),
    ),
    "dequantize mxfp4": GpuCall(
        dequantize_blocks,
        lambda tokens: blocks_reference.quantize_blocks(normal(tokens, COLUMNS), format="mxfp4"),
        constant(format="mxfp4"),
    ),
    "inverse_rope_quant transposed": GpuCall(
        inverse_rope_quant_blocks,
        lambda tokens: (normal(tokens, HEADS, 512), table(tokens)),
        constant(groups=8, scale_layout="m_major_f32"),
    ),
}
"""``sample`` is not among them: its reference sorts the vocabulary."""
