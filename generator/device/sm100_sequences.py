"""The load warp and the store warp of an attention on sm_100 whose sequences lie one after another.

What ``sm100_attention_load`` does with tensors of one sequence each, here with the rows of one sequence among others
(``sequence_rows``). Only the last key tile of a sequence has rows behind its end, and it is the last to be loaded.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, pipeline

from dsv4.generator.device import sequence_rows


@cute.jit
def load_keys_and_values(
    k: cutlass.Constexpr,
    k_full: cute.Pointer,
    k_empty: cute.Pointer,
    v: cutlass.Constexpr,
    v_full: cute.Pointer,
    v_empty: cute.Pointer,
    v_cut: cute.Pointer,
    smem_v: Int32,
    lane: Int32,
    first_part: Int32,
    parts: cutlass.Constexpr[int],
    tiles: Int32,
    keys: Int32,
    stages: cutlass.Constexpr[int],
    tile_n: cutlass.Constexpr[int],
    head_dim: cutlass.Constexpr[int],
    part_columns: cutlass.Constexpr[int],
):
    """Key tiles 0 … tiles − 1 through the K ring, and for each ``parts`` parts of V, from ``first_part`` on, of
    ``part_columns`` columns, through the V ring. ``k`` and ``v`` are Sources, ``smem_v`` is the V ring's address.

    Where the sequence of ``keys`` ends in a tile, the bytes of V count on ``v_cut``, a barrier of this warp's own, and
    the warp zeroes the rows behind the end before it says that the slot is full.
    """
    key_state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, stages)
    value_state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, stages)
    for tile in cutlass.range(tiles, unroll=1):
        full = k_full + key_state.index
        cute.arch.mbarrier_wait(k_empty + key_state.index, key_state.phase)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(full, tile_n * head_dim * 2)
        sequence_rows.copy_part(tile, 0, key_state.index, k, full, tile_n, head_dim)
        key_state.advance()
        for part in cutlass.range_constexpr(parts):
            _load_part(
                v,
                tile,
                first_part + part,
                keys - tile * tile_n,
                value_state.index,
                value_state.phase,
                v_full,
                v_empty,
                v_cut,
                part & 1,
                smem_v,
                lane,
                tile_n,
                part_columns,
            )
            value_state.advance()
    # The CTA must not end while commits of the MMA warp are still on their way to these barriers.
    for _ in cutlass.range_constexpr(stages):
        cute.arch.mbarrier_wait(k_empty + key_state.index, key_state.phase)
        cute.arch.mbarrier_wait(v_empty + value_state.index, value_state.phase)
        key_state.advance()
        value_state.advance()


@cute.jit
def _load_part(
    v: cutlass.Constexpr,
    tile: Int32,
    part: Int32,
    seen: Int32,
    slot: Int32,
    phase: Int32,
    v_full: cute.Pointer,
    v_empty: cute.Pointer,
    v_cut: cute.Pointer,
    cut_phase: cutlass.Constexpr[int],
    smem_v: Int32,
    lane: Int32,
    tile_n: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
):
    """One part of V; ``seen``: the sequence's rows from this tile on. Only one tile is cut, so that ``v_cut`` is used
    once for each of its parts."""
    part_bytes = cutlass.const_expr(tile_n * columns * 2)
    cute.arch.mbarrier_wait(v_empty + slot, phase)
    if seen >= tile_n:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(v_full + slot, part_bytes)
        sequence_rows.copy_part(tile, part, slot, v, v_full + slot, tile_n, columns)
    else:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(v_cut, part_bytes)
        sequence_rows.copy_part(tile, part, slot, v, v_cut, tile_n, columns)
        cute.arch.mbarrier_wait(v_cut, cut_phase)
        sequence_rows.zero_rows(smem_v + slot * part_bytes, seen, lane, tile_n, columns)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(v_full + slot)


@cute.jit
def store_outputs(
    o,
    o_staged: cute.Pointer,
    smem: Int32,
    group_bytes: cutlass.Constexpr[int],
    address: Int64,
    row_bytes: Int64,
    rows: Int32,
    first_tile: Int32,
    column_tile: Int32,
    lane: Int32,
    count: cutlass.Constexpr[int],
    tile_rows: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
):
    """Write each staged output tile as soon as it is there: a whole one by the copy engine, the last of a sequence by
    vectors as far as the sequence goes.

    ``o`` is ``(TMA atom, target (TMA, tile, column tile), source (TMA, group))`` of the sequence; ``rows`` are those of
    the CTA's ``count`` tiles that exist, of which row 0 is stored to ``address``; ``group_bytes`` lie between two
    staged tiles.
    """
    atom, target, source = o
    for group in cutlass.range_constexpr(count):
        left = rows - group * tile_rows
        cute.arch.mbarrier_wait(o_staged + group, 0)
        if left >= tile_rows:
            # Unlike a load, the copy of a store elects no thread by itself.
            with cute.arch.elect_one():
                cute.copy(atom, source[None, group], target[None, first_tile + group, column_tile])
                cute.arch.cp_async_bulk_commit_group()
        else:
            first = address + Int64(group * tile_rows) * row_bytes
            sequence_rows.store_vectors(
                smem + group * group_bytes, first, row_bytes, left, lane, 32, tile_rows, columns
            )
    # Shared memory belongs to the CTA: it may end once the copies have read it.
    with cute.arch.elect_one():
        cute.arch.cp_async_bulk_wait_group(0, read=True)
