"""Prompts' beginnings that are kept in the cache, for requests to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv4.runtime.errors import ContractError
from dsv4.runtime.kv.paged import PagedCache


@dataclass(frozen=True)
class Prefix:
    """``tokens`` that slot ``slot`` of the cache holds."""

    slot: int
    tokens: tuple[int, ...]


class Prefixes:
    """The kept prefixes of ``cache``. ``recompute``: how many of a prefix's last tokens a sequence runs again: one
    where the MTP layer drafts, because its key of a token depends on the next one."""

    def __init__(self, cache: PagedCache, recompute: int) -> None:
        self._cache, self._recompute = cache, recompute
        self._kept: list[Prefix] = []

    def add(self, slot: int, tokens: Sequence[int]) -> Prefix:
        """Keep ``slot``, which holds ``tokens``."""
        prefix = Prefix(slot, tuple(tokens))
        self._kept.append(prefix)
        return prefix

    def drop(self, prefix: Prefix) -> None:
        """Raises ``ContractError`` for one that is not kept."""
        if prefix not in self._kept:
            raise ContractError("prefix: found one that is not kept; valid: what add_prefix() gave, once")
        self._kept.remove(prefix)
        self._cache.free(prefix.slot)

    def open(self, text: Sequence[int]) -> tuple[int, int]:
        """A slot for ``text`` and how many of its first tokens it holds: those of the longest prefix, but never all,
        because the last token's logits are wanted. Raises ``CacheFull``."""
        best, most = None, 0
        for prefix in self._kept:
            count = min(len(prefix.tokens) - self._recompute, len(text) - 1)
            usable = self._cache.restorable(prefix.slot, count)
            if count > most and usable and tuple(text[: len(prefix.tokens)]) == prefix.tokens[: len(text)]:
                best, most = prefix, count
        if best is None:
            return self._cache.open(), 0
        return self._cache.fork(best.slot, most), most
