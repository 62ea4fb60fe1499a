"""The tensors of a paged cache, and copies of their rows as they are stored."""

from __future__ import annotations

import torch

from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.model.cache import LayerCache
from dsv4.runtime.model.schedule import LayerSchedule
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.pages import packed_views


def allocate(layout: CacheLayout, device: torch.device | str) -> tuple[LayerCache, ...]:
    """The memory of each layer of ``layout``, zeroed."""
    return tuple(_layer(layout, layer, device) for layer in layout.layers)


def _layer(layout: CacheLayout, layer: LayerSchedule, device: torch.device | str) -> LayerCache:
    config, settings, precision = layout.config, layout.settings, layout.precision

    def pool(rows: int, format: PoolFormat, width: int) -> Pool:
        return Pool.allocate(
            rows, format=format, page=settings.page, width=width, dtype=precision.activation, device=device
        )

    def state(width: int) -> torch.Tensor:
        rows = settings.sequences * layout.state_tokens(layer.ratio) + 1
        return torch.zeros(rows, layout.state_width(layer, width), dtype=precision.wide, device=device)

    window = pool(layout.window_rows, settings.kv, config.head_dim)
    if not layer.has_compressor:
        return LayerCache(window)
    entries = layout.blocks * layout.entries(layer.ratio)
    compressed, main_state = pool(entries, settings.kv, config.head_dim), state(config.head_dim)
    if not layer.has_indexer:
        return LayerCache(window, compressed, main_state)
    width = config.index_head_dim
    return LayerCache(window, compressed, main_state, pool(entries, settings.index, width), state(width))


def copy_rows(pool: Pool, source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy rows ``source`` i64 [N] of ``pool`` to ``target`` i64 [N], byte for byte; no row is in both."""
    if pool.format is PoolFormat.PLAIN:
        rows = pool.data.view(-1, pool.width)
        rows[target] = rows[source]
        return
    for region in packed_views(pool):
        region[target // pool.page, target % pool.page] = region[source // pool.page, source % pool.page]
