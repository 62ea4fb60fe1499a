"""Which thread has which numbers of a decoding attention on sm_100, with 64 heads by one CTA or 128 by a pair.

Either way a CTA has 64 rows, and a row of S, Q and O lies in two lanes of tensor memory, each of which has one half of
its columns: so two threads of a warpgroup share a row. Alone (``sm100_half_mma``) these are lanes 16 apart, of one
warp; in a pair (``sm100_pair_mma``) lanes 64 apart, of two warps, which meet in shared memory. A half of a row of S is
32 keys: alone the first or the last ones of the tile, in a pair those whose K lies in the first or in the second CTA.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass._mlir.dialects import nvvm

from dsv4.generator.device import sm100_half_mma as half_mma
from dsv4.generator.device.kv_rows import TILE_KEYS, WARP_KEYS

THREAD_KEYS = TILE_KEYS // 2
PIECES = THREAD_KEYS // 8
"""Of 16 bytes of P, of one thread: eight keys each."""
PAIR_BARRIER = 3
"""The named barrier at which the softmax's threads of a pair's CTA meet."""


class Alone(NamedTuple):
    """A CTA by itself."""

    def row_of(self, thread: Int32) -> Int32:
        return half_mma.row_of(thread)

    def half_of(self, thread: Int32) -> Int32:
        return half_mma.half_of(thread)

    def load_scores(self, scores: cute.Pointer, slot: Int32, thread: Int32, values: cute.Tensor) -> None:
        """The thread's 32 scores of the tile in ``slot``; S of the first slot is at ``scores``. Waited for."""
        first = scores.toint() + (thread >> 5) * (2 * half_mma.HALF_LANE)
        half_mma.load_split_row(first + slot * half_mma.HALF_LANE, values)

    def keys_of(self, is_key: cute.Tensor, half: Int32) -> Uint32:
        """Bit i: the thread's key i counts. ``is_key`` (4,): the words of the gathering warps."""
        return is_key[2 * half] | (is_key[2 * half + 1] << Uint32(16))

    def piece_of(self, half: Int32, number: int) -> Int32:
        """Which eight keys of the tile the thread's eight are of this ``number``, 0 … 3."""
        return PIECES * half + number

    def of_other(self, value: Float32, row: Int32, half: Int32, slot: Int32) -> Float32:
        """The ``value`` of the thread that has the row's other half."""
        return cute.arch.shuffle_sync_bfly(value, offset=16)

    def arrive(self, barrier: cute.Pointer) -> None:
        """Every thread of a warpgroup arrives."""
        cute.arch.mbarrier_arrive(barrier)

    def cta_of(self, part: Int32) -> Int32:
        """The rank in the cluster of the CTA that has these heads and ``part`` of the keys."""
        return part

    def rows_of_warp(self, warp: Int32) -> tuple[Int32, int, tuple]:
        """The first row whose lanes a warp (0 … 3 of a warpgroup) has, how many, and which halves of them."""
        return warp * 16, 16, (0, 1)


class Pair(NamedTuple):
    """One of two CTAs whose products are issued together, of 64 heads each.

    ``leader``: the rank of the one that issues them. ``side``: this CTA's place in the pair, 0 or 1. ``exchange``
    (2, 64, 2) float32: by half and row what the softmax's threads tell one another, of the tiles of a slot.
    """

    leader: Int32
    side: Int32
    exchange: cute.Tensor

    def row_of(self, thread: Int32) -> Int32:
        return thread & 63

    def half_of(self, thread: Int32) -> Int32:
        return thread >> 6

    def load_scores(self, scores: cute.Pointer, slot: Int32, thread: Int32, values: cute.Tensor) -> None:
        half_mma.load_lane(scores.toint() + (thread >> 5) * (2 * half_mma.HALF_LANE) + slot * THREAD_KEYS, values)

    def keys_of(self, is_key: cute.Tensor, half: Int32) -> Uint32:
        """Of each gathering warp's 16 keys the first or the last eight are those of one CTA's K."""
        word = Uint32(0)
        for warp in range(TILE_KEYS // WARP_KEYS):
            word = word | (((is_key[warp] >> Uint32(8 * half)) & Uint32(0xFF)) << Uint32(8 * warp))
        return word

    def piece_of(self, half: Int32, number: int) -> Int32:
        return 2 * number + half

    def of_other(self, value: Float32, row: Int32, half: Int32, slot: Int32) -> Float32:
        """A slot's place is read before its next tile: everybody has come to the barrier of the tile between."""
        self.exchange[half, row, slot] = value
        cute.arch.barrier(barrier_id=PAIR_BARRIER, number_of_threads=128)
        return self.exchange[1 - half, row, slot]

    def arrive(self, barrier: cute.Pointer) -> None:
        """Every warp arrives at the leader's barrier."""
        arrive_at(barrier, self.leader)

    def cta_of(self, part: Int32) -> Int32:
        return 2 * part + self.side

    def rows_of_warp(self, warp: Int32) -> tuple[Int32, int, tuple]:
        return (warp & 1) * 32, 32, (warp >> 1,)


ALONE = Alone()


@cute.jit
def arrive_at(barrier: cute.Pointer, rank: Int32):
    """One arrival of a warp at the place of ``barrier`` in the CTA ``rank``; what its lanes did is before it."""
    cute.arch.sync_warp()
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive(barrier, rank, scope=nvvm.MemScopeKind.CLUSTER)
