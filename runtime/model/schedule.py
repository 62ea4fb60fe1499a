"""The layers, one frozen record each: which attention, which RoPE, which router (dsv4-reference §1.2, §3.3, §9.1).

The records are plain values, so that code which branches on them is folded when it is traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dsv4.runtime.model.config import ModelConfig

Kind = Literal["swa", "csa", "hca"]
Router = Literal["hash", "dense"]
KINDS: dict[int, Kind] = {0: "swa", 4: "csa", 128: "hca"}


@dataclass(frozen=True)
class YarnParameters:
    """YaRN's stretching of the frequencies (dsv4-reference §3.3)."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class RopeParameters:
    """Rotation of the last ``rotary_dim`` dimensions; the same for everything that a layer rotates."""

    theta: float
    yarn: YarnParameters | None
    rotary_dim: int


@dataclass(frozen=True)
class LayerSchedule:
    """What one layer is.

    ``index`` counts the main layers from 0, the MTP layer follows them; ``prefix`` is how its tensors' names start.
    ``ratio`` is 0 (window only), 4 (CSA) or 128 (HCA) tokens a compressed entry. ``window`` is in tokens, the query's
    own included. ``index_topk`` is 0 in layers without an indexer.
    """

    index: int
    prefix: str
    kind: Kind
    ratio: int
    rope: RopeParameters
    router: Router
    window: int
    index_topk: int
    is_mtp: bool

    @property
    def has_compressor(self) -> bool:
        return self.ratio != 0

    @property
    def has_indexer(self) -> bool:
        return self.kind == "csa"

    @property
    def overlap(self) -> int:
        """Halves of a compressor's channels: 2 in CSA, whose entries overlap, 1 in HCA (dsv4-reference §5.1)."""
        return 2 if self.kind == "csa" else 1


@lru_cache(maxsize=64)
def schedule(config: ModelConfig) -> tuple[LayerSchedule, ...]:
    """The main layers in order, then the MTP layer where the model has one."""
    return tuple(_layer(config, index) for index in range(config.layer_count))


def _layer(config: ModelConfig, index: int) -> LayerSchedule:
    ratio = config.compress_ratios[index]
    kind = KINDS[ratio]
    main = config.num_hidden_layers
    return LayerSchedule(
        index=index,
        prefix=f"layers.{index}" if index < main else f"mtp.{index - main}",
        kind=kind,
        ratio=ratio,
        rope=_rope(config, compressed=ratio != 0),
        router="hash" if index < config.num_hash_layers else "dense",
        window=config.sliding_window,
        index_topk=config.index_topk if kind == "csa" else 0,
        is_mtp=index >= main,
    )


def _rope(config: ModelConfig, *, compressed: bool) -> RopeParameters:
    """Layers with a compressor rotate everything, the window too, by the long-context frequencies."""
    scaling = config.rope_scaling
    if not compressed or scaling is None:
        theta = config.compress_rope_theta if compressed else config.rope_theta
        return RopeParameters(theta=theta, yarn=None, rotary_dim=config.qk_rope_head_dim)
    yarn = YarnParameters(
        factor=scaling.factor,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        original_max_position_embeddings=scaling.original_max_position_embeddings,
    )
    return RopeParameters(theta=config.compress_rope_theta, yarn=yarn, rotary_dim=config.qk_rope_head_dim)
