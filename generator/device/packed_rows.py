"""Rows cut into equal parts, one part a group of threads; and rows of packed codes beside rows of bf16.

A part is spread over its ``lanes`` as a whole row is in ``vector_io``: vector ``v`` of lane ``l`` starts at column
``8 · (v · lanes + l)`` of the part. Its 8 codes lie in ``vector_bytes`` neighbouring bytes: 8 of them for E4M3, 4 for
E2M1. All strides are in elements of the matrix, those of packed codes in bytes.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint8, Uint32

from dsv4.generator.device.vector_io import VECTOR_ELEMENTS, has_partial_last, vectors_per_lane


@cute.jit
def lane_of_part(
    matrix: cute.Tensor,
    columns: cutlass.Constexpr[int],
    parts: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    part: Int32,
    lane: Int32,
) -> cute.Tensor:
    """One lane's vectors of part ``part`` of ``matrix`` (rows, parts · columns), of 16 bits: (rows, 8, vectors)."""
    vectors = vectors_per_lane(columns, lanes)
    layout = cute.make_layout(
        (matrix.shape[0], parts, (VECTOR_ELEMENTS, vectors), lanes),
        stride=(matrix.stride[0], columns, (1, VECTOR_ELEMENTS * lanes), VECTOR_ELEMENTS),
    )
    return cute.make_tensor(matrix.iterator, layout)[None, part, (None, None), lane]


@cute.jit
def packed_lane_of_part(
    codes: cute.Tensor,
    vector_bytes: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
    parts: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    part: Int32,
    lane: Int32,
) -> cute.Tensor:
    """The same of ``codes``, whose elements are bytes, as a view of shape (rows, vector_bytes, vectors) of Uint8."""
    vectors = vectors_per_lane(columns, lanes)
    layout = cute.make_layout(
        (codes.shape[0], parts, (vector_bytes, vectors), lanes),
        stride=(
            codes.stride[0],
            columns // VECTOR_ELEMENTS * vector_bytes,
            (1, vector_bytes * lanes),
            vector_bytes,
        ),
    )
    return cute.make_tensor(cute.recast_ptr(codes.iterator, dtype=Uint8), layout)[None, part, (None, None), lane]


def make_packed(vector_bytes: int, columns: int, lanes: int) -> cute.Tensor:
    """Registers for the codes of one lane's part of a row: Uint32 (vector_bytes / 4, vectors), not set."""
    return cute.make_rmem_tensor((vector_bytes // 4, vectors_per_lane(columns, lanes)), Uint32)


@cute.jit
def store_packed(
    codes: cute.Tensor,
    target: cute.Tensor,
    columns: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    lane: Int32,
) -> None:
    """Store the registers of :func:`make_packed` to one row of :func:`packed_lane_of_part`; nothing beyond the part."""
    vector_bytes = 4 * cute.size(codes, mode=[0])
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), Uint8, num_bits_per_copy=8 * vector_bytes)
    bytes_ = _as_bytes(codes, vector_bytes)
    last = vectors_per_lane(columns, lanes) - 1
    for v in cutlass.range_constexpr(last + 1):
        if cutlass.const_expr(v == last and has_partial_last(columns, lanes)):
            if (last * lanes + lane) * VECTOR_ELEMENTS < columns:
                cute.copy(atom, bytes_[None, v], target[None, v])
        else:
            cute.copy(atom, bytes_[None, v], target[None, v])


@cute.jit
def load_packed(
    source: cute.Tensor,
    codes: cute.Tensor,
    columns: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    lane: Int32,
) -> None:
    """Issue the loads of one row of :func:`packed_lane_of_part` into the registers of :func:`make_packed`.

    Nothing beyond the part is read: codes there are 0.
    """
    vector_bytes = 4 * cute.size(codes, mode=[0])
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Uint8, num_bits_per_copy=8 * vector_bytes)
    bytes_ = _as_bytes(codes, vector_bytes)
    last = vectors_per_lane(columns, lanes) - 1
    for v in cutlass.range_constexpr(last + 1):
        if cutlass.const_expr(v == last and has_partial_last(columns, lanes)):
            codes[None, v].fill(Uint32(0))
            if (last * lanes + lane) * VECTOR_ELEMENTS < columns:
                cute.copy(atom, source[None, v], bytes_[None, v])
        else:
            cute.copy(atom, source[None, v], bytes_[None, v])


def _as_bytes(codes: cute.Tensor, vector_bytes: int) -> cute.Tensor:
    """Registers (words, vectors) as bytes (vector_bytes, vectors)."""
    layout = cute.make_layout((vector_bytes, cute.size(codes, mode=[1])))
    return cute.make_tensor(cute.recast_ptr(codes.iterator, dtype=Uint8), layout)
