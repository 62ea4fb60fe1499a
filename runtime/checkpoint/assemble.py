"""The tensors of one group, by their names in the checkpoint, in the containers that the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from dsv4.runtime.checkpoint.arrange import layout_for
from dsv4.runtime.checkpoint.layouts import Layout
from dsv4.runtime.model.schedule import LayerSchedule
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
from dsv4.runtime.weight import Format, Weight


class Group:
    """Takes the tensors of a group out of ``tensors``, so that what an arrangement replaces is freed at once."""

    def __init__(self, tensors: dict[str, torch.Tensor], ops: Mapping[str, str], arch: str | None) -> None:
        self.tensors, self.ops, self.arch = tensors, ops, arch

    def tensor(self, key: str) -> torch.Tensor:
        return self.tensors.pop(key)

    def linear(self, name: str, form: Format) -> Weight:
        """The weight of the linear ``name``, arranged for the operator that reads it."""
        arrange = layout_for(self.ops[f"{name}.weight"], self.arch)
        take = self.tensors.pop
        codes = take(f"{name}.weight")
        if form is Format.PLAIN:
            return arrange(Weight(form, codes))
        if form is not Format.NVFP4:
            return arrange(Weight(form, codes, take(f"{name}.scale")))
        scale, scale_2 = take(f"{name}.weight_scale"), take(f"{name}.weight_scale_2")
        return arrange(Weight(form, codes, scale, scale_2, take(f"{name}.input_scale")))

    def expert(self, name: str, form: Format) -> ExpertWeights:
        return ExpertWeights(**{part: self.linear(f"{name}.{part}", form) for part in ("w1", "w3", "w2")})

    def mix(self, name: str) -> StreamMixWeights:
        return StreamMixWeights(*(self.tensor(f"{name}_{part}") for part in ("fn", "base", "scale")))

    def head_mix(self) -> HeadMixWeights:
        return HeadMixWeights(*(self.tensor(f"hc_head_{part}") for part in ("fn", "base", "scale")))


def block(group: Group, layer: LayerSchedule, layout: Layout) -> BlockWeights:
    """One layer's weights."""
    attention = layout.mtp_attention if layer.is_mtp else layout.attention
    return BlockWeights(
        attention_mix=group.mix("hc_attn"),
        attention_norm=group.tensor("attn_norm.weight"),
        attention=_attention(group, layer, attention),
        ffn_mix=group.mix("hc_ffn"),
        ffn_norm=group.tensor("ffn_norm.weight"),
        moe=_moe(group, layer, layout),
    )


def mtp(group: Group, layer: LayerSchedule, layout: Layout) -> MtpWeights:
    """The MTP layer's weights."""
    return MtpWeights(
        e_proj=group.linear("e_proj", layout.mtp_projections),
        h_proj=group.linear("h_proj", layout.mtp_projections),
        enorm=group.tensor("enorm.weight"),
        hnorm=group.tensor("hnorm.weight"),
        block=block(group, layer, layout),
        head_mix=group.head_mix(),
        norm=group.tensor("norm.weight"),
    )


def model(ends: Group, layers: Iterable[BlockWeights], draft: MtpWeights | None) -> ModelWeights:
    """The layers between what is before and behind them, the embedding and the head with its norm (``ends``)."""
    return ModelWeights(
        embed=ends.tensor("embed.weight"),
        layers=tuple(layers),
        head_mix=ends.head_mix(),
        norm=ends.tensor("norm.weight"),
        head=ends.tensor("head.weight"),
        mtp=draft,
    )


def _attention(group: Group, layer: LayerSchedule, form: Format) -> AttentionWeights:
    return AttentionWeights(
        wq_a=group.linear("attn.wq_a", form),
        q_norm=group.tensor("attn.q_norm.weight"),
        wq_b=group.linear("attn.wq_b", form),
        wkv=group.linear("attn.wkv", form),
        kv_norm=group.tensor("attn.kv_norm.weight"),
        wo_a=group.linear("attn.wo_a", form),
        wo_b=group.linear("attn.wo_b", form),
        sink=group.tensor("attn.attn_sink"),
        compressor=_compressor(group, "attn.compressor") if layer.has_compressor else None,
        indexer=_indexer(group, form) if layer.has_indexer else None,
    )


def _compressor(group: Group, name: str) -> CompressorWeights:
    return CompressorWeights(
        wkv=group.linear(f"{name}.wkv", Format.PLAIN),
        wgate=group.linear(f"{name}.wgate", Format.PLAIN),
        ape=group.tensor(f"{name}.ape"),
        norm=group.tensor(f"{name}.norm.weight"),
    )


def _indexer(group: Group, form: Format) -> IndexerWeights:
    return IndexerWeights(
        wq_b=group.linear("attn.indexer.wq_b", form),
        weights_proj=group.linear("attn.indexer.weights_proj", Format.PLAIN),
        compressor=_compressor(group, "attn.indexer.compressor"),
    )


def _moe(group: Group, layer: LayerSchedule, layout: Layout) -> MoeWeights:
    hashed = layer.router == "hash"
    return MoeWeights(
        router=RouterWeights(
            weight=group.tensor("ffn.gate.weight"),
            bias=None if hashed else group.tensor("ffn.gate.bias"),
            tid2eid=group.tensor("ffn.gate.tid2eid") if hashed else None,
        ),
        experts=group.expert("ffn.experts", layout.mtp_experts if layer.is_mtp else layout.experts),
        shared=group.expert("ffn.shared_experts", layout.mtp_shared if layer.is_mtp else layout.shared),
    )
