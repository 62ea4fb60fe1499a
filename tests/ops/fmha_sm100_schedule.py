"""The barrier schedule of docs/notes/fmha_sm100.md as a small model that can be run in any order of events.

Not a test module. Roles are generators that yield the barrier phases they wait for; MMAs and TMA loads complete later,
MMAs in the order of issue. What stands in a slot of shared memory or in columns of TMEM is a token that its reader
compares with what it expects, so that a slot overwritten too early is found as well as a deadlock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Wait = tuple["Barrier", int]
ROWS = 4
"""Threads of a warpgroup in the model; what matters is only that all of them arrive."""


@dataclass
class Barrier:
    """An mbarrier: ``arrivals`` end a phase; bytes are announced and brought with one arrival of the load."""

    arrivals: int
    pending: int = field(init=False)
    expected: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        self.pending = self.arrivals

    def arrive(self, copies: int = 0) -> None:
        assert self.pending > 0, "more arrivals in a phase than the barrier counts"
        self.pending -= 1
        self.expected += copies
        self._complete()

    def bring(self) -> None:
        self.expected -= 1
        self._complete()

    def _complete(self) -> None:
        if self.pending == 0 and self.expected == 0:
            self.pending, self.phase = self.arrivals, self.phase ^ 1

    def passes(self, parity: int) -> bool:
        return self.phase != parity


class Cta:
    """One CTA of ``q_tiles`` query tiles over ``tiles`` key tiles, V in ``pieces``, ``stages`` slots in each ring."""

    def __init__(self, q_tiles: int, tiles: int, pieces: int, stages: int) -> None:
        self.q_tiles, self.tiles, self.pieces, self.stages = q_tiles, tiles, pieces, stages
        groups, slots = range(q_tiles), range(stages)
        self.q_full = [Barrier(1) for _ in groups]
        self.k_full, self.k_empty = [Barrier(1) for _ in slots], [Barrier(1) for _ in slots]
        self.v_full, self.v_empty = [Barrier(1) for _ in slots], [Barrier(1) for _ in slots]
        self.s_full, self.o_final = [Barrier(1) for _ in groups], [Barrier(1) for _ in groups]
        self.p_full, self.o_ready, self.stat_full, self.stat_empty, self.o_staged = (
            [Barrier(ROWS) for _ in groups] for _ in range(5)
        )
        self.keys: list[object] = [None] * stages
        self.values: list[object] = [None] * stages
        self.scores: list[object] = [None] * q_tiles
        self.messages: list[object] = [None] * q_tiles
        self.outputs = [0] * q_tiles
        self.stored: list[int] = []
        self.mma_queue: deque[Callable[[], None]] = deque()
        self.copies: list[Callable[[], None]] = []

    def roles(self) -> list[Iterator[Wait]]:
        rows = [role(g) for g in range(self.q_tiles) for role in (self.softmax,) for _ in range(ROWS)]
        return [self.load(), self.mma(), *rows, *(self.correction() for _ in range(ROWS)), self.store()]

    def _copy(self, full: Barrier, slots: list[object], slot: int, token: object) -> None:
        full.arrive(copies=1)

        def land() -> None:
            slots[slot] = token
            full.bring()

        self.copies.append(land)

    def load(self) -> Iterator[Wait]:
        for group in range(self.q_tiles):
            self._copy(self.q_full[group], [None], 0, "Q")
        k, v = 0, 0
        for tile in range(self.tiles):
            yield self.k_empty[k % self.stages], (k // self.stages & 1) ^ 1
            self._copy(self.k_full[k % self.stages], self.keys, k % self.stages, tile)
            k += 1
            for piece in range(self.pieces):
                yield self.v_empty[v % self.stages], (v // self.stages & 1) ^ 1
                self._copy(self.v_full[v % self.stages], self.values, v % self.stages, (tile, piece))
                v += 1
        for _ in range(self.stages):
            yield self.k_empty[k % self.stages], (k // self.stages & 1) ^ 1
            yield self.v_empty[v % self.stages], (v // self.stages & 1) ^ 1
            k, v = k + 1, v + 1

    def _commit(self, barrier: Barrier) -> None:
        self.mma_queue.append(barrier.arrive)

    def _issue_scores(self, group: int, tile: int) -> None:
        slot = tile % self.stages

        def product() -> None:
            assert self.keys[slot] == tile, f"S{group}({tile}) reads K {self.keys[slot]}"
            self.scores[group] = ["S", tile, 0]

        self.mma_queue.append(product)
        self._commit(self.s_full[group])

    def _issue_outputs(self, group: int, tile: int) -> Iterator[Wait]:
        yield self.p_full[group], tile & 1
        yield self.o_ready[group], tile & 1
        for piece in range(self.pieces):
            v = tile * self.pieces + piece
            slot = v % self.stages
            yield self.v_full[slot], v // self.stages & 1

            def product(slot: int = slot, piece: int = piece) -> None:
                assert self.values[slot] == (tile, piece), f"PV{group}({tile}, {piece}) reads V {self.values[slot]}"
                assert self.scores[group] == ["P", tile, ROWS], f"PV{group}({tile}) reads {self.scores[group]}"
                assert self.outputs[group] == tile * self.pieces + piece
                self.outputs[group] += 1

            self.mma_queue.append(product)
            if group == self.q_tiles - 1:
                self._commit(self.v_empty[slot])

    def mma(self) -> Iterator[Wait]:
        for tile in range(self.tiles):
            for group in range(self.q_tiles):
                if tile == 0:
                    yield self.q_full[group], 0
                else:
                    yield from self._issue_outputs(group, tile - 1)
                if group == 0:
                    yield self.k_full[tile % self.stages], tile // self.stages & 1
                self._issue_scores(group, tile)
            self._commit(self.k_empty[tile % self.stages])
        for group in range(self.q_tiles):
            yield from self._issue_outputs(group, self.tiles - 1)
            self._commit(self.o_final[group])

    def softmax(self, group: int) -> Iterator[Wait]:
        for tile in range(self.tiles):
            yield self.s_full[group], tile & 1
            cell = self.scores[group]
            assert isinstance(cell, list) and cell[1] == tile, f"softmax {group} reads {cell} for tile {tile}"
            if tile > 0:
                yield self.stat_empty[group], ((tile - 1) & 1) ^ 1
                self.messages[group] = tile
                self.stat_full[group].arrive()
            cell[0], cell[2] = "P", cell[2] + 1
            self.p_full[group].arrive()
        yield self.stat_empty[group], ((self.tiles - 1) & 1) ^ 1
        self.messages[group] = "sum"
        self.stat_full[group].arrive()

    def correction(self) -> Iterator[Wait]:
        for group in range(self.q_tiles):
            self.o_ready[group].arrive()
        for tile in range(1, self.tiles):
            for group in range(self.q_tiles):
                yield self.stat_full[group], (tile - 1) & 1
                assert self.messages[group] == tile
                self.stat_empty[group].arrive()
                assert self.outputs[group] == tile * self.pieces, "O is rescaled before its product is complete"
                self.o_ready[group].arrive()
        for group in range(self.q_tiles):
            yield self.stat_full[group], (self.tiles - 1) & 1
            assert self.messages[group] == "sum"
            yield self.o_final[group], 0
            assert self.outputs[group] == self.tiles * self.pieces
            self.o_staged[group].arrive()

    def store(self) -> Iterator[Wait]:
        for group in range(self.q_tiles):
            yield self.o_staged[group], 0
            self.stored.append(group)


def run(cta: Cta, seed: int, engines: float) -> None:
    """Run to the end in a random order. ``engines``: how eager MMAs and copies are to complete, 0 (as late as possible)
    to 1; which of the two goes first is a matter of the seed. Raises AssertionError for a deadlock, for a token that is
    not the one expected, and for a tile that was not stored."""
    choose = random.Random(seed)
    mma_first = choose.choice((0.02, 0.5, 0.98))
    waiting: dict[Iterator[Wait], Wait | None] = dict.fromkeys(cta.roles())
    while waiting or cta.mma_queue or cta.copies:
        ready = [role for role, wait in waiting.items() if wait is None or wait[0].passes(wait[1])]
        busy = bool(cta.mma_queue or cta.copies)
        assert ready or busy, "deadlock"
        if busy and (not ready or choose.random() < engines):
            if cta.mma_queue and (not cta.copies or choose.random() < mma_first):
                cta.mma_queue.popleft()()
            else:
                cta.copies.pop(choose.randrange(len(cta.copies)))()
            continue
        role = choose.choice(ready)
        try:
            waiting[role] = next(role)
        except StopIteration:
            del waiting[role]
    assert cta.stored == list(range(cta.q_tiles))
