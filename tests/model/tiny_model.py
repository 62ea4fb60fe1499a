"""Small random models for the tests of the forward pass: every kind of layer, real head shapes."""

from __future__ import annotations

import math

import torch

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.presets import TINY
from dsv4.runtime.model.schedule import LayerSchedule, schedule
from dsv4.runtime.model.weights import (
    AttentionWeights,
    BlockWeights,
    CompressorWeights,
    ExpertWeights,
    HeadMixWeights,
    IndexerWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
    RouterWeights,
    StreamMixWeights,
)
from dsv4.runtime.reference.quantize import fp8_weight, mxfp4_weight, nvfp4_weight
from dsv4.runtime.weight import Format, Weight

SMALL = TINY.replace(
    vocab_size=96,
    hidden_size=128,
    num_attention_heads=4,
    head_dim=128,
    q_lora_rank=64,
    o_lora_rank=32,
    index_n_heads=16,
    index_topk=8,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=64,
)
"""Narrow in every direction, for long sweeps; CSA selects from position 35 on. Its packed pages have no meaning."""


class Maker:
    """Random tensors of one seed, in ``dtype``; linears in the given formats."""

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        dense: Format = Format.PLAIN,
        routed: Format = Format.PLAIN,
    ) -> None:
        self.config, self.dtype, self.dense, self.routed = config, dtype, dense, routed
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).mul(scale)

    def norm(self, width: int) -> torch.Tensor:
        return (1 + self.normal(width, scale=0.2)).to(torch.bfloat16 if self.dtype == torch.bfloat16 else self.dtype)

    def linear(self, rows: int, columns: int, format: Format | None = None, *, stack: int = 0) -> Weight:
        shape = (stack, rows, columns) if stack else (rows, columns)
        return self.stored(self.normal(*shape, scale=1 / math.sqrt(columns)), format or self.dense)

    def stored(self, values: torch.Tensor, format: Format) -> Weight:
        if format is Format.FP8_BLOCK:
            return fp8_weight(values)
        if format is Format.MXFP4:
            return mxfp4_weight(values)
        if format is Format.NVFP4:
            lead = values.shape[:-2]
            return nvfp4_weight(values, input_scale=torch.full(lead, 8.0 / (6 * 448)))
        return Weight.plain(values.to(self.dtype))

    def plain(self, rows: int, columns: int) -> Weight:
        return self.linear(rows, columns, Format.PLAIN)

    def compressor(self, layer: LayerSchedule, width: int) -> CompressorWeights:
        channels = layer.overlap * width
        return CompressorWeights(
            wkv=self.plain(channels, self.config.hidden_size),
            wgate=self.plain(channels, self.config.hidden_size),
            ape=self.normal(layer.ratio, channels),
            norm=self.norm(width),
        )

    def attention(self, layer: LayerSchedule) -> AttentionWeights:
        c = self.config
        indexer = None
        if layer.has_indexer:
            indexer = IndexerWeights(
                wq_b=self.linear(c.index_n_heads * c.index_head_dim, c.q_lora_rank),
                weights_proj=self.plain(c.index_n_heads, c.hidden_size),
                compressor=self.compressor(layer, c.index_head_dim),
            )
        return AttentionWeights(
            wq_a=self.linear(c.q_lora_rank, c.hidden_size),
            q_norm=self.norm(c.q_lora_rank),
            wq_b=self.linear(c.num_attention_heads * c.head_dim, c.q_lora_rank),
            wkv=self.linear(c.head_dim, c.hidden_size),
            kv_norm=self.norm(c.head_dim),
            wo_a=self.linear(c.o_groups * c.o_lora_rank, c.group_width),
            wo_b=self.linear(c.hidden_size, c.o_groups * c.o_lora_rank),
            sink=self.normal(c.num_attention_heads),
            compressor=self.compressor(layer, c.head_dim) if layer.has_compressor else None,
            indexer=indexer,
        )

    def mix(self) -> StreamMixWeights:
        n, width = self.config.hc_mult, self.config.hidden_size
        rows = self.config.stream_mixes
        return StreamMixWeights(
            fn=self.normal(rows, n * width, scale=1 / math.sqrt(n * width)),
            base=self.normal(rows, scale=0.5),
            scale=1 + self.normal(3, scale=0.2),
        )

    def head_mix(self) -> HeadMixWeights:
        n, width = self.config.hc_mult, self.config.hidden_size
        return HeadMixWeights(
            fn=self.normal(n, n * width, scale=1 / math.sqrt(n * width)),
            base=self.normal(n, scale=0.5),
            scale=1 + self.normal(1, scale=0.2),
        )

    def moe(self, layer: LayerSchedule) -> MoeWeights:
        c = self.config
        count, inner, width = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
        hashed = layer.router == "hash"
        ids = torch.rand(c.vocab_size, count, generator=self.generator).argsort(dim=-1)[:, : c.num_experts_per_tok]
        return MoeWeights(
            router=RouterWeights(
                weight=self.normal(count, width, scale=2 / math.sqrt(width)).to(self.dtype),
                bias=None if hashed else self.normal(count, scale=0.3),
                tid2eid=ids if hashed else None,
            ),
            experts=ExpertWeights(
                w1=self.linear(inner, width, self.routed, stack=count),
                w3=self.linear(inner, width, self.routed, stack=count),
                w2=self.linear(width, inner, self.routed, stack=count),
            ),
            shared=ExpertWeights(
                w1=self.linear(inner, width), w3=self.linear(inner, width), w2=self.linear(width, inner)
            ),
        )

    def block(self, layer: LayerSchedule) -> BlockWeights:
        return BlockWeights(
            attention_mix=self.mix(),
            attention_norm=self.norm(self.config.hidden_size),
            attention=self.attention(layer),
            ffn_mix=self.mix(),
            ffn_norm=self.norm(self.config.hidden_size),
            moe=self.moe(layer),
        )

    def model(self) -> ModelWeights:
        c = self.config
        layers = schedule(c)
        last = layers[-1]
        mtp = None
        if last.is_mtp:
            mtp = MtpWeights(
                e_proj=self.linear(c.hidden_size, c.hidden_size),
                h_proj=self.linear(c.hidden_size, c.hidden_size),
                enorm=self.norm(c.hidden_size),
                hnorm=self.norm(c.hidden_size),
                block=self.block(last),
                head_mix=self.head_mix(),
                norm=self.norm(c.hidden_size),
            )
        return ModelWeights(
            embed=self.normal(c.vocab_size, c.hidden_size).to(self.dtype),
            layers=tuple(self.block(layer) for layer in layers if not layer.is_mtp),
            head_mix=self.head_mix(),
            norm=self.norm(c.hidden_size),
            head=self.normal(c.vocab_size, c.hidden_size, scale=1 / math.sqrt(c.hidden_size)).to(self.dtype),
            mtp=mtp,
        )


def prompt(config: ModelConfig, length: int, seed: int = 1) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (length,), generator=generator).tolist()
