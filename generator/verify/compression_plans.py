"""Plans of compressed entries as the model makes them: by ``runtime/model/plan.py`` from a paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.plan import frequencies, make_plan
from dsv4.runtime.model.presets import NARROW
from dsv4.runtime.model.schedule import schedule
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.reference.compressor import Compression


@dataclass(frozen=True)
class CompressionPlan:
    """``compression`` of one step; ``cos_sin`` f32 [N, 64] of its entries; ``state_rows`` and ``pool_rows``: how many
    rows the state and the pool have, scratch included; ``apart``: no row that an entry reads is written."""

    compression: Compression
    cos_sin: torch.Tensor
    state_rows: int
    pool_rows: int
    apart: bool


def planned(ratio: int, chunks: Sequence[tuple[int, int]], *, spare: int = 1, padding: int = 0) -> CompressionPlan:
    """The plan of a step in which each sequence (first, length) has ``length`` tokens from position ``first`` on.

    The cache can take back ``spare`` tokens of each. ``padding``: so many sequences of one token follow that have no
    place in the cache.
    """
    most = max((first + length for first, length in chunks), default=1)
    settings = CacheSettings(sequences=max(1, len(chunks)), drafts=spare, step_tokens=max(1, len(chunks)) * most)
    layout = CacheLayout.holding(NARROW, settings, Precision(Numerics.EXACT), most)
    cache = PagedCache(layout)
    slots = [cache.open() for _ in chunks]
    for slot, (first, _) in zip(slots, chunks, strict=True):
        if first:
            cache.append({slot: first})
            cache.settle()
    if chunks:
        cache.append({slot: length for slot, (_, length) in zip(slots, chunks, strict=True)})
    steps = [Chunk(slot, first, [0] * length) for slot, (first, length) in zip(slots, chunks, strict=True)]
    steps += [Chunk(-1, 0, [0])] * padding
    layers = [layer for layer in schedule(NARROW) if layer.ratio == ratio]
    plan = make_plan(Step.of(steps), layers, cache, frequencies(layers, "cpu"))
    found = plan.ratios[ratio]
    longest = max((length for _, length in chunks), default=1)
    state, pool = cache.layer(layers[0].index).state, cache.layer(layers[0].index).compressed
    assert state is not None and pool is not None
    return CompressionPlan(
        compression=found.compression,
        cos_sin=found.entry_cos_sin.to(torch.float32),
        state_rows=state.shape[0],
        pool_rows=pool.rows,
        apart=longest <= 1 + spare,
    )
