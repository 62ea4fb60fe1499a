"""Decoding steps recorded as CUDA graphs, one for each number of sequences and each reach.

A step of a new shape runs once as it is, which also loads and tunes what it calls; the second time it is recorded, and
from then on replayed. A replay reads the step's buffers and the block tables, which stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.engine.batch import Batch

GRAPHS_MAX = 64
"""Kept at a time; the one that was used longest ago goes."""


class Graphs:
    """Runs a function of a ``Batch`` whose tensors never move, on a CUDA ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool: Any = None  # the memory that all graphs share

    def run(self, tick: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """``tick(batch)``, replayed where a batch of this shape was recorded; valid until the next call."""
        key = (*batch.step.lengths, batch.step.reach)
        found = self._graphs.pop(key, None)
        if found is None:
            if key not in self._seen:
                self._seen.add(key)
                return tick(batch)
            found = self._record(tick, batch)
        self._graphs[key] = found
        if len(self._graphs) > GRAPHS_MAX:
            del self._graphs[next(iter(self._graphs))]
        graph, drawn = found
        graph.replay()
        return drawn

    def _record(self, tick: Callable[[Batch], torch.Tensor], batch: Batch) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool):
            drawn = tick(batch)
        return graph, drawn
