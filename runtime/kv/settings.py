"""What a cache is to hold: sequences, blocks, tokens that may be taken back, and the bytes of a row."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4.runtime.errors import ContractError
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics
from dsv4.runtime.pool import INDEX_WIDTH, KV_WIDTH, PoolFormat

BLOCKS = (128, 256)
"""Original tokens of a block: the multiples of 4 and 128 that public engines use (dsv4-reference §11)."""

_KV = (PoolFormat.PLAIN, PoolFormat.KV_FP8)
_INDEX = (PoolFormat.PLAIN, PoolFormat.INDEX_FP8, PoolFormat.INDEX_FP4)


@dataclass(frozen=True)
class CacheSettings:
    """``sequences`` may be in the cache at a time. ``block``: original tokens of a block, 128 or 256. ``drafts``: the
    last tokens of a sequence that may be taken back. ``step_tokens``: tokens of long chunks that one step may hold.
    ``positions_max``: tokens that one sequence may have; ``None`` as many as the model and the blocks allow. ``kv`` and
    ``index``: how rows are stored, ``PLAIN`` in the dtype of the activations. ``page``: rows of a page of every pool.
    ``mtp``: whether the MTP layer has memory.
    """

    sequences: int = 1
    block: int = 256
    drafts: int = 1
    step_tokens: int = 512
    positions_max: int | None = None
    kv: PoolFormat = PoolFormat.PLAIN
    index: PoolFormat = PoolFormat.PLAIN
    page: int = 64
    mtp: bool = True

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise _refused("block", self.block, " or ".join(map(str, BLOCKS)))
        least = {"sequences": 1, "drafts": 0, "step_tokens": 1, "page": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise _refused(name, getattr(self, name), f"{low} or more")
        if self.positions_max is not None and self.positions_max < 1:
            raise _refused("positions_max", self.positions_max, "1 or more")
        for name, formats in (("kv", _KV), ("index", _INDEX)):
            if getattr(self, name) not in formats:
                raise _refused(name, getattr(self, name), ", ".join(each.value for each in formats))

    def require_fits(self, config: ModelConfig) -> None:
        """Raises ``ContractError`` where the packed formats do not hold rows of this model."""
        if self.kv is PoolFormat.KV_FP8 and (config.head_dim, config.qk_rope_head_dim) != (KV_WIDTH, 64):
            found = f"{self.kv.value} for head_dim {config.head_dim} with {config.qk_rope_head_dim} rotary"
            raise _refused("kv", found, f"plain, or head_dim {KV_WIDTH} with 64 rotary")
        if self.index is not PoolFormat.PLAIN and config.index_head_dim != INDEX_WIDTH:
            found = f"{self.index.value} for index_head_dim {config.index_head_dim}"
            raise _refused("index", found, f"plain, or index_head_dim {INDEX_WIDTH}")


def formats_for(numerics: Numerics, config: ModelConfig) -> tuple[PoolFormat, PoolFormat]:
    """(kv, index) as ``numerics`` stores them: packed pages for the engine's kernels, where the model's rows fit them;
    plain numbers else."""
    if numerics is not Numerics.ENGINE:
        return PoolFormat.PLAIN, PoolFormat.PLAIN
    packed_kv = (config.head_dim, config.qk_rope_head_dim) == (KV_WIDTH, 64)
    packed_index = config.index_head_dim == INDEX_WIDTH
    return (
        PoolFormat.KV_FP8 if packed_kv else PoolFormat.PLAIN,
        PoolFormat.INDEX_FP8 if packed_index else PoolFormat.PLAIN,
    )


def _refused(name: str, found: object, valid: str) -> ContractError:
    shown = found.value if isinstance(found, PoolFormat) else found
    return ContractError(f"cache: {name}: found {shown}; valid: {valid}")
