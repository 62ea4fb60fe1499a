"""The tensors of the model, in typed containers: what the loader fills and the forward pass reads.

Names follow the checkpoint's (dsv4-reference §14.1). ``d`` hidden size, ``H`` heads, ``c`` = 512 head dimension, ``G``
output groups, ``E`` experts, ``I`` their intermediate size, ``n`` = 4 streams, ``m`` tokens a compressed entry, ``f``
2 in CSA and 1 in HCA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dsv4.runtime.weight import Format, Weight

__all__ = [
    "AttentionWeights",
    "BlockWeights",
    "CompressorWeights",
    "ExpertWeights",
    "Format",
    "HeadMixWeights",
    "IndexerWeights",
    "ModelWeights",
    "MoeWeights",
    "MtpWeights",
    "RouterWeights",
    "StreamMixWeights",
    "Weight",
    "map_weights",
]

Container = TypeVar("Container")


@dataclass(frozen=True)
class CompressorWeights:
    """``wkv`` and ``wgate`` plain [f·hd, d], ``ape`` f32 [m, f·hd], ``norm`` [hd]; hd = 512, or 128 in the indexer."""

    wkv: Weight
    wgate: Weight
    ape: torch.Tensor
    norm: torch.Tensor


@dataclass(frozen=True)
class IndexerWeights:
    """``wq_b`` [heads · 128, q_lora], ``weights_proj`` plain [heads, d]; CSA layers only."""

    wq_b: Weight
    weights_proj: Weight
    compressor: CompressorWeights


@dataclass(frozen=True)
class AttentionWeights:
    """``wq_a`` [q_lora, d], ``q_norm`` [q_lora], ``wq_b`` [H·c, q_lora], ``wkv`` [c, d], ``kv_norm`` [c],
    ``wo_a`` [G·o_lora, H·c/G], ``wo_b`` [d, G·o_lora], ``sink`` f32 [H] (``attn_sink``)."""

    wq_a: Weight
    q_norm: torch.Tensor
    wq_b: Weight
    wkv: Weight
    kv_norm: torch.Tensor
    wo_a: Weight
    wo_b: Weight
    sink: torch.Tensor
    compressor: CompressorWeights | None = None
    indexer: IndexerWeights | None = None


@dataclass(frozen=True)
class StreamMixWeights:
    """One use of mHC (``hc_attn_*`` or ``hc_ffn_*``): ``fn`` f32 [(2+n)·n, n·d], ``base`` f32 [(2+n)·n], ``scale``
    f32 [3]."""

    fn: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class HeadMixWeights:
    """``hc_head_*``: ``fn`` f32 [n, n·d], ``base`` f32 [n], ``scale`` f32 [1]."""

    fn: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class RouterWeights:
    """``weight`` [E, d]; ``bias`` f32 [E] in dense layers; ``tid2eid`` i64 or i32 [vocabulary, k] in hash layers."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    tid2eid: torch.Tensor | None = None


@dataclass(frozen=True)
class ExpertWeights:
    """``w1`` (gate) and ``w3`` (up) [.., I, d], ``w2`` (down) [.., d, I]; routed experts are stacked, [E, .., ..]."""

    w1: Weight
    w3: Weight
    w2: Weight


@dataclass(frozen=True)
class MoeWeights:
    router: RouterWeights
    experts: ExpertWeights
    shared: ExpertWeights


@dataclass(frozen=True)
class BlockWeights:
    """One layer: ``attention_mix`` is ``hc_attn_*``, ``ffn_mix`` is ``hc_ffn_*``; the norms [d]."""

    attention_mix: StreamMixWeights
    attention_norm: torch.Tensor
    attention: AttentionWeights
    ffn_mix: StreamMixWeights
    ffn_norm: torch.Tensor
    moe: MoeWeights


@dataclass(frozen=True)
class MtpWeights:
    """``mtp.0.*``: ``e_proj`` and ``h_proj`` [d, d]; ``enorm``, ``hnorm`` and ``norm`` [d]."""

    e_proj: Weight
    h_proj: Weight
    enorm: torch.Tensor
    hnorm: torch.Tensor
    block: BlockWeights
    head_mix: HeadMixWeights
    norm: torch.Tensor


@dataclass(frozen=True)
class ModelWeights:
    """``embed`` [vocabulary, d], ``head`` [vocabulary, d] (untied), ``norm`` [d]."""

    embed: torch.Tensor
    layers: tuple[BlockWeights, ...]
    head_mix: HeadMixWeights
    norm: torch.Tensor
    head: torch.Tensor
    mtp: MtpWeights | None = None


def map_weights(
    container: Container, *, weight: Callable[[Weight], Weight], tensor: Callable[[torch.Tensor], torch.Tensor]
) -> Container:
    """A copy of ``container`` (any of the above) with every ``Weight`` and every other tensor replaced."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Weight):
            return weight(value)
        if isinstance(value, torch.Tensor):
            return tensor(value)
        if isinstance(value, tuple):
            return tuple(mapped(part) for part in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {field.name: mapped(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return dataclasses.replace(value, **parts)
        return value

    return mapped(container)
