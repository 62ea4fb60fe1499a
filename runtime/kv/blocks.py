"""Blocks and how many sequences hold each."""

from __future__ import annotations

from collections.abc import Iterable


class Blocks:
    """Block numbers 0 … count − 1. A block is free, or has as many holders as it was taken and shared."""

    def __init__(self, count: int) -> None:
        self._holders = [0] * count
        self._free = list(range(count - 1, -1, -1))

    @property
    def count(self) -> int:
        return len(self._holders)

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def holders(self, block: int) -> int:
        return self._holders[block]

    def take(self) -> int:
        """A free block, now with one holder. The caller has looked that there is one."""
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free"
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each; those that nobody holds any more are free."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free already"
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)
