"""A model small enough to write a checkpoint of it in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsv4.runtime.model.config import WeightScheme
from dsv4.runtime.model.presets import TINY

MINI = TINY.replace(
    vocab_size=64,
    hidden_size=192,  # no multiple of 128: the last FP8 block of a row or column is cut
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=32,
    q_lora_rank=128,
    o_lora_rank=64,
    index_n_heads=2,
    index_head_dim=32,
    index_topk=8,
    n_routed_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=96,
)

Written = Callable[[WeightScheme, int], Path]
