"""Slabs of columns of all tiles, one after the other, shared out evenly: a share may begin and end within a tile.

With ``slabs`` a tile, tiles · slabs of them are numbered through; share c of ``shares`` has those from
c · tiles · slabs / shares on. A tile that several shares have is put together by whoever of them is the last to arrive:
parts lie in global memory, and a counter tells.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32


@cute.jit
def share_count(tiles: Int32, most: Int32, slabs: cutlass.Constexpr[int], slabs_min: cutlass.Constexpr[int]) -> Int32:
    """How many shares, up to ``most`` and of ``slabs_min`` slabs or more: whole ones a tile, or whole tiles a share,
    where no more than a sixteenth of ``most`` is left idle by that. ``tiles`` ≥ 1."""
    shares = cutlass.max(cutlass.min(most, tiles * (slabs // slabs_min)), 1)
    whole = tiles * (shares // tiles)
    if tiles > shares:
        rounds = cute.ceil_div(tiles, shares)
        whole = tiles // rounds if tiles % rounds == 0 else Int32(0)
    return whole if 16 * whole >= 15 * shares else shares


@cute.jit
def first_slab(share: Int32, shares: Int32, all_slabs: Int32) -> Int32:
    """The number of the first slab of ``share``, also the end of the share before it."""
    return share * all_slabs // shares


@cute.jit
def share_of(slab: Int32, shares: Int32, all_slabs: Int32) -> Int32:
    """The share that has ``slab``."""
    return ((slab + 1) * shares - 1) // all_slabs


@cute.jit
def is_last(
    counter: cute.Tensor,
    others: Int32,
    word: cute.Tensor,
    thread: Int32,
    barrier: cutlass.Constexpr[int],
    threads: cutlass.Constexpr[int],
):
    """Whether ``others`` have arrived at ``counter`` (Int32 [1], global memory) before these ``threads``.

    What all who arrived had written before is visible to the last, which leaves the counter at zero. ``word``: Int32 in
    shared memory; ``barrier``: a named one of these threads, ``thread`` 0 … ``threads`` − 1.
    """
    cute.arch.barrier(barrier_id=barrier, number_of_threads=threads)
    if thread == 0:
        word[0] = cute.arch.atomic_add(counter.iterator.llvm_ptr, Int32(1), sem="acq_rel", scope="gpu")
    cute.arch.barrier(barrier_id=barrier, number_of_threads=threads)
    last = word[0] == others
    if last and thread == 0:
        counter[0] = 0  # for the next launch
    return last
