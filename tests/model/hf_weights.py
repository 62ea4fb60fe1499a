"""The DeepSeek-V4 of Hugging Face transformers with the weights of a ``ModelWeights``, as an oracle in float32.

Importing this takes seconds, so tests import it where they need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported; nothing here asks a server

import torch
from transformers.cache_utils import DynamicCache
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4ForCausalLM

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.weights import (
    AttentionWeights,
    BlockWeights,
    CompressorWeights,
    ExpertWeights,
    ModelWeights,
    MoeWeights,
)
from dsv4.runtime.weight import Weight

Tensors = Iterator[tuple[str, torch.Tensor]]


def hf_config(config: ModelConfig) -> DeepseekV4Config:
    """As transformers reads the ``config.json`` that we write, with its implementations in plain PyTorch."""
    return DeepseekV4Config(**config.to_hf(), attn_implementation="eager", experts_implementation="eager")


def hf_model(config: ModelConfig, weights: ModelWeights) -> DeepseekV4ForCausalLM:
    """In float32; it has no MTP layer."""
    model = DeepseekV4ForCausalLM(hf_config(config)).eval().requires_grad_(False)
    state = dict(_model(weights))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in state.items()} == expected
    model.load_state_dict(state, strict=True)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in model.state_dict().values())
    return model


def _model(weights: ModelWeights) -> Tensors:
    yield "model.embed_tokens.weight", weights.embed
    yield "model.norm.weight", weights.norm
    yield "lm_head.weight", weights.head
    yield from _under("model.hc_head.hc_", vars(weights.head_mix).items())
    for index, layer in enumerate(weights.layers):
        yield from _under(f"model.layers.{index}.", block_state(layer))


def block_state(block: BlockWeights) -> Tensors:
    """The state of one ``DeepseekV4DecoderLayer``."""
    yield "input_layernorm.weight", block.attention_norm
    yield "post_attention_layernorm.weight", block.ffn_norm
    yield from _under("attn_hc.", vars(block.attention_mix).items())
    yield from _under("ffn_hc.", vars(block.ffn_mix).items())
    yield from _under("self_attn.", _attention(block.attention))
    yield from _under("mlp.", _moe(block.moe))


def _attention(weights: AttentionWeights) -> Tensors:
    yield "q_a_proj.weight", values(weights.wq_a)
    yield "q_a_norm.weight", weights.q_norm
    yield "q_b_proj.weight", values(weights.wq_b)
    yield "kv_proj.weight", values(weights.wkv)
    yield "kv_norm.weight", weights.kv_norm
    yield "o_a_proj.weight", values(weights.wo_a)
    yield "o_b_proj.weight", values(weights.wo_b)
    yield "sinks", weights.sink
    if weights.compressor is not None:
        yield from _under("compressor.", _compressor(weights.compressor))
    if weights.indexer is not None:
        yield "compressor.indexer.q_b_proj.weight", values(weights.indexer.wq_b)
        yield "compressor.indexer.scorer.weights_proj.weight", values(weights.indexer.weights_proj)
        yield from _under("compressor.indexer.", _compressor(weights.indexer.compressor))


def _compressor(weights: CompressorWeights) -> Tensors:
    yield "kv_proj.weight", values(weights.wkv)
    yield "gate_proj.weight", values(weights.wgate)
    yield "position_bias", weights.ape
    yield "kv_norm.weight", weights.norm


def _moe(weights: MoeWeights) -> Tensors:
    yield "gate.weight", weights.router.weight
    if weights.router.bias is not None:
        yield "gate.e_score_correction_bias", weights.router.bias
    if weights.router.tid2eid is not None:
        yield "gate.tid2eid", weights.router.tid2eid
    routed: ExpertWeights = weights.experts
    yield "experts.gate_up_proj", torch.cat((values(routed.w1), values(routed.w3)), dim=1)
    yield "experts.down_proj", values(routed.w2)
    yield "shared_experts.gate_proj.weight", values(weights.shared.w1)
    yield "shared_experts.up_proj.weight", values(weights.shared.w3)
    yield "shared_experts.down_proj.weight", values(weights.shared.w2)


def values(weight: Weight) -> torch.Tensor:
    return weight.dequantize(torch.float32)


def _under(prefix: str, tensors: Iterator[tuple[str, torch.Tensor]] | object) -> Tensors:
    for name, tensor in tensors:  # type: ignore[attr-defined]
        yield prefix + name, tensor


class Sequence:
    """One sequence through their model, with its cache."""

    def __init__(self, model: DeepseekV4ForCausalLM) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)

    @torch.no_grad()
    def step(self, tokens: list[int]) -> torch.Tensor:
        """Logits [T, vocabulary] of the next ``tokens``."""
        return self.model(input_ids=torch.tensor([tokens]), cache=self.cache, use_cache=True).logits[0]

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The ``count`` tokens after the prompt ``tokens``."""
        text: list[int] = []
        while len(text) < count:
            text.append(int(self.step(text[-1:] or tokens)[-1].argmax()))
        return text
