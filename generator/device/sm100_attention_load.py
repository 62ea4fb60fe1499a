"""The load warp and the store warp of attention on sm_100: all traffic with global memory, by TMA.

Rows of a box beyond the end of a tensor are filled with zeros by the load (and count in the bytes of its barrier) and
left out by the store, so no length has to be a multiple of a tile.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, pipeline
from cutlass.cute.nvgpu import cpasync

BF16_BYTES = 2


def partition_tiles(atom: cute.CopyAtom, shared: cute.Tensor, tiles: cute.Tensor) -> tuple[cute.Tensor, cute.Tensor]:
    """TMA views of a ring and of the tiles that go through it.

    ``shared``: ((MMA tile), …, slot), the slot last. ``tiles``: the same first modes, then two tile coordinates.
    Returns ``(copy, slot)`` and ``(copy, coordinate, coordinate)``; the rank of the second is checked here because a
    wrong one would silently pin a coordinate to tile 0.
    """
    tile_modes = cute.rank(shared) - 1
    ring, source = cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(shared, 0, tile_modes), cute.group_modes(tiles, 0, tile_modes)
    )
    assert cute.rank(ring) == 2, f"expected (copy, slot), found {ring.layout}"
    assert cute.rank(source) == 3, f"expected (copy, coordinate, coordinate), found {source.layout}"
    return ring, source


def query_tiles(
    atom: cute.CopyAtom, query: cute.Tensor, shared: cute.Tensor, mma: cute.TiledMma, rows: int, head_dim: int
):
    """Views for tiles of ``rows`` queries: ``query`` is the TMA tensor (Sq, D) of one head, ``shared`` holds W tiles.

    Returns ``(copy, W)`` and ``(copy, query tile)``.
    """
    parts = mma.get_slice(0).partition_A(cute.flat_divide(query, (rows, head_dim)))
    slots, source = partition_tiles(atom, shared, parts)
    assert cute.size(source, mode=[2]) == 1, f"head_dim is one tile, found {source.layout}"
    return slots, source[None, None, 0]


def key_tiles(
    atom: cute.CopyAtom, keys: cute.Tensor, shared: cute.Tensor, mma: cute.TiledMma, tile_n: int, head_dim: int
):
    """Views for tiles of ``tile_n`` keys: ``keys`` is the TMA tensor (Sk, D) of one head, ``shared`` the ring.

    Returns ``(copy, slot)`` and ``(copy, key tile)``.
    """
    parts = mma.get_slice(0).partition_B(cute.flat_divide(keys, (tile_n, head_dim)))
    ring, source = partition_tiles(atom, shared, parts)
    assert cute.size(source, mode=[2]) == 1, f"head_dim is one tile, found {source.layout}"
    return ring, source[None, None, 0]


def value_tiles(
    atom: cute.CopyAtom, values: cute.Tensor, shared: cute.Tensor, mma: cute.TiledMma, columns: int, tile_n: int
):
    """Views for tiles of ``columns`` value columns × ``tile_n`` keys: ``values`` is the TMA tensor (D, Sk) of one head.

    V is the B operand of P·V: its N mode is the head dimension, which is the contiguous one (MN-major). Returns
    ``(copy, slot)`` and ``(copy, column tile, key tile)``.
    """
    parts = mma.get_slice(0).partition_B(cute.flat_divide(values, (columns, tile_n)))
    return partition_tiles(atom, shared, parts)


@cute.jit
def load_tile(
    atom: cute.CopyAtom,
    source: cute.Tensor,
    target: cute.Tensor,
    full: cute.Pointer,
    tile_bytes: cutlass.Constexpr[int],
):
    """Announce ``tile_bytes`` on the barrier ``full`` and issue the copy that brings them."""
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full, tile_bytes)
    cute.copy(atom, source, target, tma_bar_ptr=full)


@cute.jit
def load_queries(
    atom: cute.CopyAtom,
    source: cute.Tensor,
    slots: cute.Tensor,
    q_full: cute.Pointer,
    first_tile: Int32,
    count: cutlass.Constexpr[int],
    tile_bytes: cutlass.Constexpr[int],
):
    """One query tile for each softmax warpgroup, each with a barrier of its own. They stay for the whole CTA."""
    for group in cutlass.range_constexpr(count):
        load_tile(atom, source[None, first_tile + group], slots[None, group], q_full + group, tile_bytes)


@cute.jit
def load_keys_and_values(
    atom_k: cute.CopyAtom,
    key_source: cute.Tensor,
    key_ring: cute.Tensor,
    k_full: cute.Pointer,
    k_empty: cute.Pointer,
    key_bytes: cutlass.Constexpr[int],
    atom_v: cute.CopyAtom,
    value_source: cute.Tensor,
    value_ring: cute.Tensor,
    v_full: cute.Pointer,
    v_empty: cute.Pointer,
    value_bytes: cutlass.Constexpr[int],
    first_column_tile: Int32,
    column_tiles: cutlass.Constexpr[int],
    tiles: Int32,
    stages: cutlass.Constexpr[int],
):
    """Key tiles 0 … tiles − 1 through the K ring, and for each the ``column_tiles`` pieces of V through the V ring."""
    key_state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, stages)
    value_state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, stages)
    for tile in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(k_empty + key_state.index, key_state.phase)
        load_tile(atom_k, key_source[None, tile], key_ring[None, key_state.index], k_full + key_state.index, key_bytes)
        key_state.advance()
        for piece in cutlass.range_constexpr(column_tiles):
            cute.arch.mbarrier_wait(v_empty + value_state.index, value_state.phase)
            load_tile(
                atom_v,
                value_source[None, first_column_tile + piece, tile],
                value_ring[None, value_state.index],
                v_full + value_state.index,
                value_bytes,
            )
            value_state.advance()
    # The CTA must not end while commits of the MMA warp are still on their way to these barriers.
    for _ in cutlass.range_constexpr(stages):
        cute.arch.mbarrier_wait(k_empty + key_state.index, key_state.phase)
        cute.arch.mbarrier_wait(v_empty + value_state.index, value_state.phase)
        key_state.advance()
        value_state.advance()


@cute.jit
def store_outputs(
    atom: cute.CopyAtom,
    output: cute.Tensor,
    shared: cute.Tensor,
    o_staged: cute.Pointer,
    first_tile: Int32,
    column_tile: Int32,
    count: cutlass.Constexpr[int],
    rows: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
):
    """Write each staged output tile as soon as it is there. ``output`` is the TMA tensor (Sq, D) of one head."""
    tiles = cute.flat_divide(output, (rows, columns))
    slots, target = partition_tiles(atom, shared, tiles)
    for group in cutlass.range_constexpr(count):
        cute.arch.mbarrier_wait(o_staged + group, 0)
        # Unlike a load, the copy of a store elects no thread by itself.
        with cute.arch.elect_one():
            cute.copy(atom, slots[None, group], target[None, first_tile + group, column_tile])
            cute.arch.cp_async_bulk_commit_group()
    # Shared memory belongs to the CTA: it may end once the copies have read it.
    with cute.arch.elect_one():
        cute.arch.cp_async_bulk_wait_group(0, read=True)
