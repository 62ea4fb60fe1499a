"""The paged cache: blocks of compressed entries behind block tables, rings of window rows and compressor states.

A window ring has room for the model's window and a few drafts. A longer chunk of a prefill would overwrite rows that
its first tokens still need, so its rows go to a stage, and ``settle`` moves the last of them to the ring when the step
is done. What the model asks for, rows of positions and entries, is answered by tensor code on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.ledger import BlockCopy, Ledger
from dsv4.runtime.kv.pools import allocate, copy_rows
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.cache import LayerCache
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.pool import Pool

_NEVER = 1 << 62
"""A position that no token has."""


class _Staged(NamedTuple):
    """A slot's chunk of this step: ``tokens`` of them from position ``first``, at row ``base``."""

    slot: int
    first: int
    base: int
    tokens: int


class PagedCache:
    """Satisfies ``dsv4.runtime.model.cache.Cache``; allocates all its memory at once.

    A sequence is opened, appended to before each step, and freed. Every operation that fails leaves all sequences as
    they were: ``CacheFull`` where there is no room, ``ContractError`` for arguments that mean nothing.
    """

    def __init__(self, layout: CacheLayout, device: torch.device | str = "cpu") -> None:
        settings = layout.settings
        self.layout = layout
        self.device = torch.device(device)
        self._layers = allocate(layout, device)
        self._ring = layout.ring
        self._ledger = Ledger(
            slots=settings.sequences,
            blocks=layout.blocks,
            block=settings.block,
            drafts=settings.drafts,
            positions_max=layout.positions_max,
        )
        shape = (settings.sequences, layout.table_width)
        self._table = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._stage_first = torch.full((settings.sequences,), _NEVER, dtype=torch.int64, device=device)
        self._stage_shift = torch.zeros(settings.sequences, dtype=torch.int64, device=device)
        self._staged: list[_Staged] = []
        self._tabled: dict[int, list[int]] = {}

    @classmethod
    def within(
        cls,
        config: ModelConfig,
        settings: CacheSettings,
        budget_bytes: int,
        *,
        precision: Precision = Precision(Numerics.EXACT),  # noqa: B008 — frozen
        device: torch.device | str = "cpu",
    ) -> PagedCache:
        """The largest cache within ``budget_bytes``. Raises ``CacheFull`` where that is too little."""
        return cls(CacheLayout.within(config, settings, precision, budget_bytes), device)

    # what the model asks

    @property
    def positions_max(self) -> int:
        return self.layout.positions_max

    @property
    def step_tokens_max(self) -> int:
        return max(self.ring_tokens_max, self.layout.settings.step_tokens)

    @property
    def ring_tokens_max(self) -> int:
        """Tokens of one sequence that a step may write straight into its ring."""
        return self._ring - self.layout.config.sliding_window + 1

    def layer(self, index: int) -> LayerCache:
        if not 0 <= index < len(self._layers):
            raise ContractError(f"cache: layer: found {index}; valid: 0 to {len(self._layers) - 1}, as allocated")
        return self._layers[index]

    def layers(self) -> Iterable[LayerCache]:
        return self._layers

    def window_rows(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        rows = slots * self._ring + positions % self._ring
        if self._staged:
            staged = positions >= self._stage_first[slots]
            rows = torch.where(staged, self._stage_shift[slots] + positions, rows)
        return rows.masked_fill((slots < 0) | (positions < 0), -1)

    def entry_rows(self, ratio: int, slots: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        each = self.layout.entries(ratio)
        place = entries // each
        within = place.clamp(0, self._table.shape[1] - 1)
        block = self._table[slots, within].to(torch.int64)
        none = (slots < 0) | (entries < 0) | (place != within) | (block < 0)
        return (block * each + entries % each).masked_fill(none, -1)

    def state_rows(self, ratio: int, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        kept = self.state_tokens(ratio)
        return (slots * kept + positions % kept).masked_fill((slots < 0) | (positions < 0), -1)

    def state_tokens(self, ratio: int) -> int:
        return self.layout.state_tokens(ratio)

    # what its owner does between steps

    @property
    def free_slots(self) -> int:
        return self._ledger.free_slots

    @property
    def free_blocks(self) -> int:
        return self._ledger.free_blocks

    def length(self, slot: int) -> int:
        """Tokens of the sequence that are in the cache."""
        return self._ledger.holding(slot).length

    def restorable(self, slot: int, length: int) -> bool:
        """Whether ``rollback`` and ``fork`` can go to ``length``."""
        try:
            self._ledger.require_restorable(slot, length)
        except ContractError:
            return False
        return True

    def open(self) -> int:
        """A slot for a new sequence. Raises ``CacheFull`` where all are taken."""
        return self._ledger.open()

    def free(self, slot: int) -> None:
        """Give back the slot and the blocks that only it held."""
        self._ledger.free(slot)
        self._staged = [chunk for chunk in self._staged if chunk.slot != slot]
        self._stage_first[slot] = _NEVER
        self._table[slot] = -1
        self._tabled.pop(slot, None)

    def reserve(self, slot: int, positions: int) -> None:
        """Make room for ``positions`` tokens of the sequence in all, so that appending them cannot fail.

        Raises ``CacheFull``, or ``ContractError`` for more than ``positions_max``.
        """
        self._make_room([slot], self._ledger.reserve({slot: positions}))

    def append(self, tokens: Mapping[int, int]) -> None:
        """Make room for the next ``tokens`` of each slot, all or none, and count them as there: a step may write them.

        Chunks longer than ``ring_tokens_max`` are staged, ``step_tokens`` in all; then ``settle`` has to be called
        after the step. Raises ``CacheFull`` or ``ContractError``.
        """
        staged, base = [], self.layout.settings.sequences * self._ring
        for slot, count in tokens.items():
            if count > self.ring_tokens_max:
                staged.append(_Staged(slot, self.length(slot), base, count))
                base += count
        if base > self.layout.window_rows:
            found = sum(chunk.tokens for chunk in staged)
            raise ContractError(
                f"cache: found {found} tokens of long chunks in a step; valid: at most "
                f"{self.layout.settings.step_tokens}, as its settings say"
            )
        if self._staged:
            raise ContractError("cache: found a step that was not settled; valid: settle() after each step")
        self._make_room(tokens, self._ledger.append(tokens))
        if staged:
            slots = self._ints([chunk.slot for chunk in staged])
            self._stage_first[slots] = self._ints([chunk.first for chunk in staged])
            self._stage_shift[slots] = self._ints([chunk.base - chunk.first for chunk in staged])
            self._staged = staged

    def settle(self) -> None:
        """Move what later steps need of the staged chunks to the rings. Does nothing where none was staged."""
        if not self._staged:
            return
        source, target = [], []
        for slot, first, base, count in self._staged:
            for position in range(max(first, first + count - self._ring), first + count):
                source.append(base + position - first)
                target.append(slot * self._ring + position % self._ring)
        self._copy((layer.window for layer in self._layers), source, target)
        self._stage_first.fill_(_NEVER)
        self._staged = []

    def rollback(self, slot: int, length: int) -> None:
        """Take back the tokens from ``length`` on, at most the settings' ``drafts`` of those ever appended.

        Nothing is copied: rings are wide enough, and what lies beyond is written again before it is seen. Raises
        ``ContractError`` where ``length`` cannot be restored.
        """
        self._ledger.rollback(slot, length)

    def fork(self, slot: int, length: int | None = None) -> int:
        """A new sequence that begins with the first ``length`` tokens (default: all) of ``slot``.

        Blocks are shared until one of the two writes into them; rings and states are copied, which is what allows any
        length that ``rollback`` does, not only multiples of 128. Raises ``CacheFull`` and ``ContractError``.
        """
        if self._staged:
            raise ContractError("cache: found a step that was not settled; valid: settle() before fork()")
        child = self._ledger.fork(slot, self.length(slot) if length is None else length)
        self._write_tables([child])
        ring = range(self._ring)
        self._copy(
            (layer.window for layer in self._layers),
            [slot * self._ring + row for row in ring],
            [child * self._ring + row for row in ring],
        )
        for schedule, layer in zip(self.layout.layers, self._layers, strict=True):
            kept = self.state_tokens(schedule.ratio) if schedule.has_compressor else 0
            for state in (layer.state, layer.index_state):
                if state is not None:
                    state[child * kept : (child + 1) * kept] = state[slot * kept : (slot + 1) * kept]
        return child

    def _make_room(self, slots: Iterable[int], copies: Sequence[BlockCopy]) -> None:
        """Follow the ledger: copy what shared blocks hold, and tell the device who holds which."""
        if copies:
            for ratio in {layer.ratio for layer in self.layout.layers if layer.has_compressor}:
                each = self.layout.entries(ratio)
                source = [copy.source * each + row for copy in copies for row in range(each)]
                target = [copy.target * each + row for copy in copies for row in range(each)]
                self._copy(self._compressed_pools(ratio), source, target)
        self._write_tables(slots)

    def _compressed_pools(self, ratio: int) -> Iterable[Pool]:
        for schedule, layer in zip(self.layout.layers, self._layers, strict=True):
            if schedule.ratio == ratio:
                yield from (pool for pool in (layer.compressed, layer.index) if pool is not None)

    def _write_tables(self, slots: Iterable[int]) -> None:
        """Bring the device's block tables up to date where they have changed."""
        for slot in slots:
            blocks = self._ledger.holding(slot).blocks
            if self._tabled.get(slot) != blocks:
                self._tabled[slot] = list(blocks)
                padding = [-1] * (self._table.shape[1] - len(blocks))
                self._table[slot] = torch.tensor([*blocks, *padding], dtype=torch.int32).to(self.device)

    def _copy(self, pools: Iterable[Pool], source: Sequence[int], target: Sequence[int]) -> None:
        from_rows, to_rows = self._ints(source), self._ints(target)
        for pool in pools:
            copy_rows(pool, from_rows, to_rows)

    def _ints(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device)
