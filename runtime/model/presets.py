"""The known sizes: Flash and Pro as released (dsv4-reference §1.1), and a tiny one with their head shapes.

``specs/models/*.yaml`` says the same to the generator; a test holds the two together.
"""

from __future__ import annotations

from dsv4.runtime.model.config import ModelConfig, Quantization, RopeScaling

FLASH = ModelConfig(
    vocab_size=129280,
    hidden_size=4096,
    num_hidden_layers=43,
    num_attention_heads=64,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
    sliding_window=128,
    compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
    rope_theta=10000,
    compress_rope_theta=160000,
    rope_scaling=RopeScaling(factor=16, beta_fast=32, beta_slow=1, original_max_position_embeddings=65536),
    max_position_embeddings=1048576,
    n_routed_experts=256,
    num_experts_per_tok=6,
    moe_intermediate_size=2048,
    num_hash_layers=3,
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    expert_dtype="fp4",
    quantization_config=Quantization(),
)

PRO = FLASH.replace(
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    index_topk=1024,
    compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
    n_routed_experts=384,
    moe_intermediate_size=3072,
    routed_scaling_factor=2.5,
)

TINY = FLASH.replace(
    vocab_size=1024,
    hidden_size=512,
    num_hidden_layers=5,
    num_attention_heads=8,
    q_lora_rank=512,
    o_lora_rank=128,
    o_groups=2,
    index_n_heads=8,
    index_topk=64,
    compress_ratios=(0, 0, 4, 128, 4, 0),
    n_routed_experts=16,
    moe_intermediate_size=256,
    num_hash_layers=2,
)
"""Every kind of layer, small enough for a CPU."""

NARROW = TINY.replace(
    vocab_size=320,
    hidden_size=256,
    num_attention_heads=2,
    q_lora_rank=128,
    o_lora_rank=128,
    num_hidden_layers=3,
    compress_ratios=(0, 4, 128, 0),
    num_hash_layers=1,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
)
"""Every kind of layer with the real head shapes and little else; the vocabulary has room for the byte tokenizer."""
