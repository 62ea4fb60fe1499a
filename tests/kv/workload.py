"""A plain model of what a cache must give back: each sequence is a list of numbered tokens.

``Workload`` does to a ``PagedCache`` what the model does in a step, with a token's number in place of its key: it
writes window rows, states and entries at the rows that the cache names, and checks every row that attention and the
compressors would read.
"""

from __future__ import annotations

import random

import torch

from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.pool import Pool
from tests.model.tiny_model import SMALL

CONFIG = SMALL.replace(num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), num_hash_layers=0)
SPANS = {4: 8, 128: 128}
"""Tokens that make an entry, by ratio."""


class Workload:
    """A cache, and the texts that it should hold, by slot."""

    def __init__(self, seed: int, *, slots: int = 4, blocks: int = 9, block: int = 128, drafts: int = 2) -> None:
        settings = CacheSettings(sequences=slots, block=block, drafts=drafts, step_tokens=300)
        self.cache = PagedCache(CacheLayout(CONFIG, settings, Precision(Numerics.EXACT), blocks))
        self.texts: dict[int, list[int]] = {}
        self.written: dict[int, int] = {}
        self.random = random.Random(seed)
        self.tokens = 0
        self.done: dict[str, int] = {}
        self.refused = 0

    def act(self) -> None:
        """One operation, chosen at random; what it must refuse it must leave unchanged."""
        names = {"append": 8, "decode": 8, "rollback": 4, "fork": 3, "open": 3, "free": 1, "reserve": 1}
        (name,) = self.random.choices(list(names), list(names.values()))
        before = self.state()
        try:
            getattr(self, f"do_{name}")()
            self.done[name] = self.done.get(name, 0) + 1
        except (CacheFull, ContractError):
            self.refused += 1
            assert self.state() == before, f"{name} was refused and changed something"

    def state(self) -> tuple[object, ...]:
        cache = self.cache
        lengths = {slot: cache.length(slot) for slot in self.texts}
        return lengths, cache.free_blocks, cache.free_slots, cache._table.tolist(), list(cache._staged)

    def do_open(self) -> None:
        slot = self.cache.open()
        self.texts[slot], self.written[slot] = [], 0

    def do_free(self) -> None:
        if self.texts:
            slot = self.random.choice(list(self.texts))
            self.cache.free(slot)
            del self.texts[slot]

    def do_reserve(self) -> None:
        if self.texts:
            self.cache.reserve(self.random.choice(list(self.texts)), self.random.randrange(1, 900))

    def do_fork(self) -> None:
        if self.texts:
            parent = self.random.choice(list(self.texts))
            length = len(self.texts[parent]) - self.random.randrange(3)
            child = self.cache.fork(parent, length)
            self.texts[child], self.written[child] = self.texts[parent][:length], self.written[parent]

    def do_rollback(self) -> None:
        if self.texts:
            slot = self.random.choice(list(self.texts))
            length = len(self.texts[slot]) - self.random.randrange(1, 4)
            self.cache.rollback(slot, length)
            del self.texts[slot][length:]

    def do_append(self) -> None:
        """Chunks of any length for some sequences."""
        some = [slot for slot in self.texts if self.random.random() < 0.6]
        self.append({slot: self.random.choice((1, 2, 3, 5, 64, 127, 128, 140, 257)) for slot in some})

    def do_decode(self) -> None:
        """A token and perhaps drafts for every sequence."""
        self.append({slot: self.random.randrange(1, 4) for slot in self.texts})

    def append(self, counts: dict[int, int]) -> None:
        self.cache.append(counts)
        firsts = {slot: len(self.texts[slot]) for slot in counts}
        for slot, count in counts.items():
            self.texts[slot] += range(self.tokens + 1, self.tokens + count + 1)
            self.tokens += count
            self.written[slot] = max(self.written[slot], len(self.texts[slot]))
        for slot, first in firsts.items():
            self.write(slot, first)
        for slot, first in firsts.items():
            self.check(slot, first)
        self.cache.settle()

    def write(self, slot: int, first: int) -> None:
        """What a step writes for the tokens of ``slot`` from ``first`` on, reading states first, as compressors do."""
        text, cache = self.texts[slot], self.cache
        positions = torch.arange(first, len(text))
        rows = cache.window_rows(torch.full_like(positions, slot), positions)
        for layer in cache.layers():
            put(layer.window, rows, text[first:])
        for ratio, span in SPANS.items():
            layer = cache.layer(1 if ratio == 4 else 2)
            assert layer.state is not None and layer.compressed is not None
            for entry in range(first // ratio, len(text) // ratio):
                members = range(max(0, (entry + 1) * ratio - span), first)
                kept = cache.state_rows(ratio, torch.tensor([slot]), torch.tensor(list(members), dtype=torch.int64))
                assert layer.state[kept, 0].tolist() == [text[member] for member in members]
                row = cache.entry_rows(ratio, torch.tensor([slot]), torch.tensor([entry]))
                for pool in (layer.compressed, layer.index):
                    if pool is not None:
                        put(pool, row, [text[(entry + 1) * ratio - 1]])
            last = torch.arange(max(first, len(text) - cache.state_tokens(ratio)), len(text))
            kept = cache.state_rows(ratio, torch.full_like(last, slot), last)
            for state in (layer.state, layer.index_state):
                if state is not None:
                    state[kept] = torch.tensor(text[int(last[0]) :], dtype=state.dtype)[:, None]

    def check(self, slot: int, first: int) -> None:
        """What attention reads for the tokens of ``slot`` from ``first`` on."""
        text, cache = self.texts[slot], self.cache
        positions = torch.arange(first, len(text))[:, None] - torch.arange(CONFIG.sliding_window)
        rows = cache.window_rows(torch.tensor([[slot]]), positions)
        assert ((rows < 0) == (positions < 0)).all()
        expected = torch.tensor(text)[positions.clamp(min=0)]
        for layer in cache.layers():
            assert (got(layer.window, rows) == expected)[positions >= 0].all(), "window"
        self.check_entries(slot)

    def check_entries(self, slot: int) -> None:
        text, cache = self.texts[slot], self.cache
        for ratio in SPANS:
            layer = cache.layer(1 if ratio == 4 else 2)
            entries = torch.arange(len(text) // ratio)
            rows = cache.entry_rows(ratio, torch.tensor([slot]), entries)
            assert (rows >= 0).all()
            for pool in (layer.compressed, layer.index):
                if pool is not None:
                    assert got(pool, rows).tolist() == text[ratio - 1 :: ratio], f"entries of ratio {ratio}"


def put(pool: Pool, rows: torch.Tensor, numbers: list[int]) -> None:
    pool.data.view(-1, pool.width)[rows] = torch.tensor(numbers, dtype=pool.data.dtype)[:, None]


def got(pool: Pool, rows: torch.Tensor) -> torch.Tensor:
    return pool.data.view(-1, pool.width)[rows, -1].to(torch.int64)
