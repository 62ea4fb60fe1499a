"""The simplest cache: a fixed share of every pool for each sequence. For tests, and for one conversation at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dsv4.runtime.model.cache import LayerCache
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.schedule import LayerSchedule, schedule
from dsv4.runtime.pool import Pool, PoolFormat


class ContiguousCache:
    """Room for ``slots`` sequences of ``positions_max`` tokens each.

    ``ring``: tokens that the window of a sequence keeps; by default all, so that a step may have any length. A ring of
    window − 1 + L rows takes steps of L tokens. ``spare``: tokens that may be taken back from the partial states.
    ``kv`` and ``index`` are the formats of the pools (``PLAIN`` in the dtype of ``precision``), ``page`` the rows of a
    page.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int = 1,
        positions_max: int = 512,
        ring: int | None = None,
        spare: int = 0,
        precision: Precision = Precision(Numerics.EXACT),  # noqa: B008 — frozen
        kv: PoolFormat = PoolFormat.PLAIN,
        index: PoolFormat = PoolFormat.PLAIN,
        page: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        self._slots = slots
        self._positions = positions_max
        self._ring = positions_max if ring is None else min(ring, positions_max)
        self._window = config.sliding_window
        self._spare = spare
        self._layers = tuple(
            self._allocate(layer, config, precision, kv, index, page, device) for layer in schedule(config)
        )

    def _allocate(
        self,
        layer: LayerSchedule,
        config: ModelConfig,
        precision: Precision,
        kv: PoolFormat,
        index: PoolFormat,
        page: int,
        device: torch.device | str,
    ) -> LayerCache:
        dtype = precision.activation

        def pool(rows: int, format: PoolFormat, width: int) -> Pool:
            return Pool.allocate(rows, format=format, page=page, width=width, dtype=dtype, device=device)

        def state(width: int) -> torch.Tensor:
            rows = self._slots * self.state_tokens(layer.ratio) + 1
            return torch.zeros(rows, 2 * layer.overlap * width, dtype=precision.wide, device=device)

        window = pool(self._slots * self._ring, kv, config.head_dim)
        if not layer.has_compressor:
            return LayerCache(window)
        entries = self._slots * self._entries(layer.ratio)
        compressed, main_state = pool(entries, kv, config.head_dim), state(config.head_dim)
        if not layer.has_indexer:
            return LayerCache(window, compressed, main_state)
        width = config.index_head_dim
        return LayerCache(window, compressed, main_state, pool(entries, index, width), state(width))

    @property
    def positions_max(self) -> int:
        return self._positions

    @property
    def step_tokens_max(self) -> int:
        return self._positions if self._ring == self._positions else self._ring - self._window + 1

    def layer(self, index: int) -> LayerCache:
        return self._layers[index]

    def layers(self) -> Iterable[LayerCache]:
        return self._layers

    def window_rows(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return _rows(slots, positions, self._ring)

    def entry_rows(self, ratio: int, slots: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        return _rows(slots, entries, self._entries(ratio))

    def state_rows(self, ratio: int, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return _rows(slots, positions, self.state_tokens(ratio))

    def state_tokens(self, ratio: int) -> int:
        return (2 * ratio if ratio == 4 else ratio) + self._spare

    def _entries(self, ratio: int) -> int:
        return max(1, self._positions // ratio)


def _rows(slots: torch.Tensor, places: torch.Tensor, share: int) -> torch.Tensor:
    """Place p of slot s in a pool where each slot has ``share`` rows, taken in turn; −1 for none."""
    return (slots * share + places % share).masked_fill((slots < 0) | (places < 0), -1)
