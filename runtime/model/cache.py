"""What the forward pass asks of a KV cache.

A cache gives the model pools to write to and read from, and turns (sequence slot, position) into rows of them by tensor
code, without a synchronisation. Pools of all layers of one kind share their numbering, so rows are computed once a
step. The last row of every pool and state is scratch (see ``dsv4.runtime.pool``); a row of −1 is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from dsv4.runtime.pool import Pool


@dataclass(frozen=True)
class LayerCache:
    """The memory of one layer. ``window``: keys of the last tokens. In CSA and HCA layers ``compressed`` holds the
    entries and ``state`` [rows, 2·f·512] float32 the compressor's last tokens; in CSA layers ``index`` and
    ``index_state`` [rows, 2·f·128] the same of the indexer."""

    window: Pool
    compressed: Pool | None = None
    state: torch.Tensor | None = None
    index: Pool | None = None
    index_state: torch.Tensor | None = None


class Cache(Protocol):
    """Slots are i64 tensors, −1 for padding; positions and entries may be negative, meaning none. Both broadcast.

    Every method gives −1 where the slot or the position is negative. Before a step the owner of the cache has made
    room for its tokens; the model writes all of the step's rows before it reads any.
    """

    @property
    def positions_max(self) -> int:
        """Positions 0 … positions_max − 1 of a sequence can be stored."""
        ...

    @property
    def step_tokens_max(self) -> int:
        """Tokens of one sequence that one step may hold: the window's rows must keep window − 1 tokens beside them."""
        ...

    def layer(self, index: int) -> LayerCache:
        """The memory of layer ``index``; the MTP layer follows the main layers."""
        ...

    def window_rows(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the window pools; those of positions that the window has left behind may belong to later ones."""
        ...

    def entry_rows(self, ratio: int, slots: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """Rows of the compressed pools (and of the indexer's, for ratio 4) of compressed entries."""
        ...

    def state_rows(self, ratio: int, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the states of layers of this ratio; those of positions long past may belong to later ones."""
        ...

    def state_tokens(self, ratio: int) -> int:
        """How many of a sequence's last tokens the state keeps: 8 (CSA) or 128 (HCA) and as many as may be taken
        back."""
        ...
