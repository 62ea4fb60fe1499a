"""The bytes of a cache, before anything is allocated: for each kind of layer, and for all of it within a budget.

A block of B original tokens is B/4 entries in every CSA layer, as many keys of its indexer, and B/128 entries in every
HCA layer; blocks have one numbering for all layers. A sequence has, whatever its length, a ring of window rows in every
layer and rings of compressor states (dsv4-reference §11.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dsv4.runtime.errors import CacheFull
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Precision
from dsv4.runtime.model.schedule import LayerSchedule, schedule
from dsv4.runtime.pool import ROW_BYTES, PoolFormat, page_bytes

TABLE_ENTRY_BYTES = 4
STAGE_BYTES = 16
"""Of a sequence: where its chunk of the current step lies, two int64."""


@dataclass(frozen=True)
class LayerBytes:
    """Of one layer, without padding: ``per_token`` original token of history, and for each sequence the ``window`` of
    the model's last tokens, the ``ring`` that holds it with room for drafts, and the ``state`` of its compressors."""

    per_token: Fraction
    window: int
    ring: int
    state: int


class CacheLayout:
    """A cache of ``blocks`` blocks. ``total_bytes`` is what its tensors take, padding and scratch rows included."""

    def __init__(self, config: ModelConfig, settings: CacheSettings, precision: Precision, blocks: int) -> None:
        settings.require_fits(config)
        self.config, self.settings, self.precision, self.blocks = config, settings, precision, blocks
        self.layers = tuple(layer for layer in schedule(config) if settings.mtp or not layer.is_mtp)
        self.ring = config.sliding_window + settings.drafts
        self.window_rows = settings.sequences * self.ring + settings.step_tokens

    @classmethod
    def within(
        cls, config: ModelConfig, settings: CacheSettings, precision: Precision, budget_bytes: int
    ) -> CacheLayout:
        """The largest cache that takes no more than ``budget_bytes``, and no more than its sequences can fill.

        Raises ``CacheFull`` where not even one block fits beside the rings.
        """
        least = cls(config, settings, precision, 1).total_bytes
        if least > budget_bytes:
            raise CacheFull(
                f"cache: budget: found {budget_bytes} bytes; valid: {least} or more, which hold {settings.sequences} "
                f"sequences' rings and one block of {settings.block} tokens"
            )
        low, high = 1, cls(config, settings, precision, 1).useful_blocks
        while low < high:
            middle = (low + high + 1) // 2
            fits = cls(config, settings, precision, middle).total_bytes <= budget_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return cls(config, settings, precision, low)

    @classmethod
    def holding(cls, config: ModelConfig, settings: CacheSettings, precision: Precision, tokens: int) -> CacheLayout:
        """The smallest cache whose blocks hold ``tokens`` for each of its sequences."""
        return cls(config, settings, precision, settings.sequences * max(1, -(-tokens // settings.block)))

    @property
    def positions_cap(self) -> int:
        """Tokens that a sequence may have by the model and the settings, were there blocks enough."""
        wanted = self.settings.positions_max
        most = self.config.max_position_embeddings
        return most if wanted is None else min(wanted, most)

    @property
    def useful_blocks(self) -> int:
        """Blocks that all sequences together can fill."""
        return self.settings.sequences * -(-self.positions_cap // self.settings.block)

    @property
    def tokens(self) -> int:
        """Original tokens that the blocks hold."""
        return self.blocks * self.settings.block

    @property
    def positions_max(self) -> int:
        return min(self.positions_cap, self.tokens)

    @property
    def table_width(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.positions_max // self.settings.block)

    def entries(self, ratio: int) -> int:
        """Compressed entries of a block."""
        return self.settings.block // ratio

    def state_tokens(self, ratio: int) -> int:
        """Rows of a state's ring: f · m tokens that make an entry, and those that may be taken back."""
        return (2 * ratio if ratio == 4 else ratio) + self.settings.drafts

    def state_width(self, layer: LayerSchedule, head_width: int) -> int:
        """Numbers in a row of a state: kv and score of a token."""
        return 2 * layer.overlap * head_width

    def row_bytes(self, format: PoolFormat, width: int) -> int:
        return width * self.precision.activation.itemsize if format is PoolFormat.PLAIN else sum(ROW_BYTES[format])

    def layer_bytes(self, layer: LayerSchedule) -> LayerBytes:
        config, settings = self.config, self.settings
        row = self.row_bytes(settings.kv, config.head_dim)
        token = Fraction(row, layer.ratio) if layer.has_compressor else Fraction(0)
        state = 0
        if layer.has_compressor:
            rows, wide = self.state_tokens(layer.ratio), self.precision.wide.itemsize
            state = rows * self.state_width(layer, config.head_dim) * wide
            if layer.has_indexer:
                token += Fraction(self.row_bytes(settings.index, config.index_head_dim), layer.ratio)
                state += rows * self.state_width(layer, config.index_head_dim) * wide
        return LayerBytes(token, config.sliding_window * row, self.ring * row, state)

    def pool_bytes(self, rows: int, format: PoolFormat, width: int) -> int:
        """What ``Pool.allocate`` takes for ``rows``."""
        page = self.settings.page
        each = page * self.row_bytes(format, width) if format is PoolFormat.PLAIN else page_bytes(format, page)
        return (rows // page + 1) * each

    def allocated_bytes(self, layer: LayerSchedule) -> int:
        """What the tensors of one layer take."""
        config, settings = self.config, self.settings
        total = self.pool_bytes(self.window_rows, settings.kv, config.head_dim)
        if layer.has_compressor:
            rows = self.blocks * self.entries(layer.ratio)
            state_rows = settings.sequences * self.state_tokens(layer.ratio) + 1  # and the scratch row
            wide = self.precision.wide.itemsize
            total += self.pool_bytes(rows, settings.kv, config.head_dim)
            total += state_rows * self.state_width(layer, config.head_dim) * wide
            if layer.has_indexer:
                total += self.pool_bytes(rows, settings.index, config.index_head_dim)
                total += state_rows * self.state_width(layer, config.index_head_dim) * wide
        return total

    @property
    def table_bytes(self) -> int:
        """Block tables and places of chunks."""
        return self.settings.sequences * (self.table_width * TABLE_ENTRY_BYTES + STAGE_BYTES)

    @property
    def total_bytes(self) -> int:
        return sum(map(self.allocated_bytes, self.layers)) + self.table_bytes
