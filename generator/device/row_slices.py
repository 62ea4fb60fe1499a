"""Slices of 64 columns of bf16 rows in shared memory: fetched by cp.async, read 16 bytes a lane.

A row of a slice is 128 bytes, eight vectors of 16 bytes. A warp reads four neighbouring vectors of eight rows at once,
two rows in each quarter of the access; odd rows hold their two halves exchanged, so that those two use different banks.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Int32
from cutlass.cute.nvgpu import cpasync

VECTORS = 8
"""Vectors of 8 elements (16 bytes) of a row of a slice."""


def make_slices(memory: cute.struct.MemRange, rows: int, stages: int) -> cute.Tensor:
    """Shared memory as (8 elements, 8 vectors, ``rows``, ``stages``)."""
    return memory.get_tensor(cute.make_ordered_layout((8, VECTORS, rows, stages), order=(0, 1, 2, 3)))


@cute.jit
def fetch_slice(
    source: cute.Tensor,
    first_row: Int32,
    end_row: Int32,
    number: Int32,
    target: cute.Tensor,
    thread: Int32,
    threads: cutlass.Constexpr[int],
) -> None:
    """Start copying slice ``number`` of ``source`` (rows, columns) from ``first_row`` on into ``target`` (8, 8, rows).

    All ``threads`` (a multiple of 16) take part; who commits and waits is the caller. In place of rows from ``end_row``
    on, the last row before it is copied.
    """
    rows = cute.size(target, mode=[2])
    vector, row = thread % VECTORS, thread // VECTORS
    columns = cute.size(source, mode=[1])
    layout = cute.make_layout(((8, columns // 8), source.shape[0]), stride=((1, 8), source.stride[0]))
    vectors = cute.make_tensor(source.iterator, layout)
    atom = cute.make_copy_atom(
        cpasync.CopyG2SOp(cache_mode=cpasync.LoadCacheMode.GLOBAL), BFloat16, num_bits_per_copy=128
    )
    for i in cutlass.range_constexpr(-(-rows * VECTORS // threads)):
        into = row + i * (threads // VECTORS)
        read = cutlass.min(first_row + into, end_row - 1)
        from_vector = vectors[(None, number * VECTORS + vector), read]
        to_vector = target[None, vector ^ (into % 2 * 4), into]
        if into < rows:  # always, where the threads divide the vectors
            cute.copy(atom, from_vector, to_vector)


@cute.jit
def lane_vector(rows: cute.Tensor, first_row: Int32, half: Int32, lane: Int32) -> cute.Tensor:
    """What ``row_products.add_products`` asks of a lane: of row ``first_row`` + lane / 4 the vector lane % 4 of a half.

    ``rows``: (8, 8, rows), one slice. ``half``: 0 or 1, of its 64 columns. ``first_row``: a multiple of 8.
    """
    row = lane // 4
    found = cute.make_rmem_tensor((8,), BFloat16)
    cute.autovec_copy(rows[None, (half * 4 + lane % 4) ^ (row % 2 * 4), first_row + row], found)
    return found
