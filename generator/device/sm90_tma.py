"""TMA between ``[batch, sequence, head, column]`` bf16 tensors and swizzled shared-memory tiles of one head."""

from __future__ import annotations

import cutlass.cute as cute
from cutlass.cute.nvgpu import cpasync

from dsv4.generator.device import sm90_wgmma


def _by_rows(tensor: cute.Tensor) -> cute.Tensor:
    """``[B, S, H, D]`` seen as ``(S, D, H, B)``."""
    return cute.make_tensor(tensor.iterator, cute.select(tensor.layout, mode=[1, 3, 2, 0]))


def load_atom(tensor: cute.Tensor, rows: int, columns: int):
    """Host: ``(TMA atom, coordinate tensor (S, D, H, B))`` that loads tiles of ``rows`` x ``columns`` of one head."""
    return _atom(cpasync.CopyBulkTensorTileG2SOp(), tensor, rows, columns)


def store_atom(tensor: cute.Tensor, rows: int, columns: int):
    """Host: like ``load_atom``, but the atom stores; rows beyond the sequence are cut off by the copy engine."""
    return _atom(cpasync.CopyBulkTensorTileS2GOp(), tensor, rows, columns)


def _atom(op, tensor: cute.Tensor, rows: int, columns: int):
    smem_tile = cute.slice_(sm90_wgmma.k_major_smem_layout(rows, columns, 1), (None, None, 0))
    return cpasync.make_tiled_tma_atom(op, _by_rows(tensor), smem_tile, (rows, columns))


def tile_copy(atom: cute.CopyAtom, smem: cute.Tensor, gmem: cute.Tensor):
    """``(atom, global side (TMA, tile …), shared side (TMA, slot …))`` for copies between tiles and slots.

    ``smem`` is ``(rows, columns, slot …)``, ``gmem`` ``(rows, columns, tile …)`` as ``local_tile`` gives it.
    """
    tile = cute.size(smem, mode=[0]) * cute.size(smem, mode=[1])
    assert cute.size(gmem, mode=[0]) * cute.size(gmem, mode=[1]) == tile, f"{gmem.shape} in tiles of {smem.shape}"
    shared, source = cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    )
    # Mode 0 is one whole tile on both sides and the others count slots and tiles: a coordinate put into the wrong
    # mode would silently read tile 0 for ever.
    assert cute.size(source, mode=[0]) == cute.size(shared, mode=[0]) == tile, (source.shape, shared.shape)
    assert cute.rank(source) == cute.rank(gmem) - 1 and cute.rank(shared) == cute.rank(smem) - 1
    return atom, source, shared
