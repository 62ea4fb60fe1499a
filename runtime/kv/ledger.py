"""Who owns what in a paged cache: slots, lengths and blocks, as plain numbers on the host.

Every operation happens whole or not at all. A block may be written only by a sequence that holds it alone: appending to
a shared one copies it first. Only the blocks from ``length`` on are ever written, because a compressed entry is
complete when its last token has come, and is not touched after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv.blocks import Blocks


class BlockCopy(NamedTuple):
    """The entries of ``source`` are to be copied to ``target`` before anything is written there."""

    source: int
    target: int


@dataclass
class Holding:
    """Of one sequence: ``length`` tokens are in the cache, ``written`` is the most there ever were (what lies beyond
    ``length`` was taken back), ``blocks`` those of tokens 0 …"""

    length: int = 0
    written: int = 0
    blocks: list[int] = field(default_factory=list)


class Ledger:
    """``slots`` sequences at a time, of up to ``positions_max`` tokens, in ``blocks`` blocks of ``block`` tokens; the
    last ``drafts`` tokens of a sequence may be taken back."""

    def __init__(self, *, slots: int, blocks: int, block: int, drafts: int, positions_max: int) -> None:
        self.block, self.drafts, self.positions_max = block, drafts, positions_max
        self.blocks = Blocks(blocks)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._slots = slots
        self._open: dict[int, Holding] = {}

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def free_blocks(self) -> int:
        return self.blocks.free

    def holding(self, slot: int) -> Holding:
        """Raises ``ContractError`` for a slot that is not open."""
        if slot not in self._open:
            raise ContractError(f"cache: slot: found {slot}, which holds no sequence; valid: one that open() gave")
        return self._open[slot]

    def open(self) -> int:
        """A slot for a new sequence, without tokens and blocks. Raises ``CacheFull``."""
        if not self._free_slots:
            raise CacheFull(
                f"cache: found all {self._slots} slots taken; valid: free one, or a cache of more sequences"
            )
        slot = self._free_slots.pop()
        self._open[slot] = Holding()
        return slot

    def free(self, slot: int) -> None:
        """Give the slot and its blocks back; shared blocks stay with their other holders."""
        self.blocks.release(self.holding(slot).blocks)
        del self._open[slot]
        self._free_slots.append(slot)

    def reserve(self, positions: Mapping[int, int]) -> list[BlockCopy]:
        """Make room in each slot for tokens up to ``positions`` in all, so that appending them cannot fail.

        Raises ``ContractError`` for more positions than a sequence may have, ``CacheFull`` where there are not blocks
        enough for all; then nothing has changed. Gives the copies that have to be made.
        """
        for slot, count in positions.items():
            self.holding(slot)
            if count > self.positions_max:
                raise ContractError(
                    f"cache: slot {slot}: found {count} positions; valid: at most {self.positions_max} a sequence"
                )
        wanted, needed = self._wanted(positions)
        if needed > self.blocks.free:
            raise CacheFull(
                f"cache: found {self.blocks.free} of {self.blocks.count} blocks free, {needed} wanted; valid: free a "
                f"sequence, or a cache of more blocks ({self.block} tokens each)"
            )
        copies = []
        for slot, places in wanted.items():
            holding = self._open[slot]
            for place in places:
                block = self.blocks.take()
                if place == len(holding.blocks):
                    holding.blocks.append(block)
                    continue
                shared, holding.blocks[place] = holding.blocks[place], block
                if place * self.block < holding.length:
                    copies.append(BlockCopy(shared, block))
                self.blocks.release([shared])
        return copies

    def _wanted(self, positions: Mapping[int, int]) -> tuple[dict[int, list[int]], int]:
        """The places in each slot's blocks that need a new block, and how many those are."""
        let_go: dict[int, int] = {}
        wanted: dict[int, list[int]] = {}
        for slot, count in positions.items():
            holding = self._open[slot]
            places = []
            if count > holding.length:
                for place in range(holding.length // self.block, -(-count // self.block)):
                    if place < len(holding.blocks):
                        block = holding.blocks[place]
                        if self.blocks.holders(block) - let_go.get(block, 0) == 1:
                            continue
                        let_go[block] = let_go.get(block, 0) + 1
                    places.append(place)
            wanted[slot] = places
        return wanted, sum(map(len, wanted.values()))

    def append(self, tokens: Mapping[int, int]) -> list[BlockCopy]:
        """The next ``tokens`` of each slot, for which room is made first. Raises as ``reserve`` does."""
        for slot, count in tokens.items():
            if count < 1:
                raise ContractError(f"cache: slot {slot}: found {count} tokens to append; valid: 1 or more")
        copies = self.reserve({slot: self.holding(slot).length + count for slot, count in tokens.items()})
        for slot, count in tokens.items():
            holding = self._open[slot]
            holding.length += count
            holding.written = max(holding.written, holding.length)
        return copies

    def rollback(self, slot: int, length: int) -> None:
        """Take back the tokens from ``length`` on; their blocks stay reserved.

        Raises ``ContractError`` where rings no longer hold what a sequence of ``length`` tokens needs.
        """
        self.require_restorable(slot, length)
        self._open[slot].length = length

    def fork(self, slot: int, length: int) -> int:
        """A new slot with the first ``length`` tokens of ``slot``, whose blocks the two share.

        Raises ``ContractError`` as ``rollback`` does, and ``CacheFull`` where no slot is free.
        """
        self.require_restorable(slot, length)
        parent = self._open[slot]
        child = self.open()
        blocks = parent.blocks[: -(-length // self.block)]
        self.blocks.share(blocks)
        self._open[child] = Holding(length, parent.written, blocks)
        return child

    def require_restorable(self, slot: int, length: int) -> None:
        """Raises ``ContractError`` unless ``slot`` can go on from ``length`` tokens."""
        holding = self.holding(slot)
        least = 0 if holding.written <= self.drafts else holding.written - self.drafts
        if not least <= length <= holding.length:
            raise ContractError(
                f"cache: slot {slot}: found a length of {length}; valid: {least} to {holding.length}: "
                f"rings keep the last {self.drafts} tokens beside what the next one needs"
            )
