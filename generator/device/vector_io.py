"""Rows of a matrix as 16-byte vectors spread over a group of threads ("lanes").

A row of ``columns`` 16-bit elements is cut into vectors of 8 elements (16 bytes). Vector ``v`` of lane ``l`` of a group
of ``lanes`` threads starts at column ``8 * (v * lanes + l)``: neighbouring lanes touch neighbouring 16 bytes, so every
access of a warp is coalesced. A fragment holds one lane's vectors of one row in registers, shape ``(8, vectors)``.
Where the row is no whole number of ``8 * lanes`` elements, some lanes have no last vector: it reads as zeros and is
never stored.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute

VECTOR_ELEMENTS = 8
VECTOR_BITS = 128


def vectors_per_lane(columns: int, lanes: int) -> int:
    """How many 16-byte vectors each of ``lanes`` threads holds of a row of ``columns`` elements, rounded up.

    Raises ``ValueError`` where ``columns`` is no positive multiple of 8.
    """
    if columns <= 0 or columns % VECTOR_ELEMENTS:
        raise ValueError(f"columns: found {columns}; valid: a positive multiple of {VECTOR_ELEMENTS}")
    return -(-columns // (VECTOR_ELEMENTS * lanes))


def has_partial_last(columns: int, lanes: int) -> bool:
    """Whether some lanes have no last vector."""
    return columns % (VECTOR_ELEMENTS * lanes) != 0


def make_fragment(columns: int, lanes: int, dtype: type[cutlass.Numeric]) -> cute.Tensor:
    """Registers for one lane's part of a row: shape ``(8, vectors)``, not set."""
    return cute.make_rmem_tensor((VECTOR_ELEMENTS, vectors_per_lane(columns, lanes)), dtype)


@cute.jit
def lane_of_rows(
    matrix: cute.Tensor, columns: cutlass.Constexpr[int], lanes: cutlass.Constexpr[int], lane: cutlass.Int32
) -> cute.Tensor:
    """One lane's part of ``matrix`` (rows, columns) as a view of shape ``(rows, 8, vectors)``.

    The row stride keeps its width: a 64-bit stride gives 64-bit row offsets.
    """
    vectors = vectors_per_lane(columns, lanes)
    layout = cute.make_layout(
        (matrix.shape[0], (VECTOR_ELEMENTS, vectors), lanes),
        stride=(matrix.stride[0], (1, VECTOR_ELEMENTS * lanes), VECTOR_ELEMENTS),
    )
    return cute.make_tensor(matrix.iterator, layout)[None, (None, None), lane]


@cute.jit
def lane_of_row(
    row: cute.Tensor, columns: cutlass.Constexpr[int], lanes: cutlass.Constexpr[int], lane: cutlass.Int32
) -> cute.Tensor:
    """One lane's part of the single ``row`` (columns,) as a view of shape ``(8, vectors)``."""
    vectors = vectors_per_lane(columns, lanes)
    layout = cute.make_layout(
        ((VECTOR_ELEMENTS, vectors), lanes), stride=((1, VECTOR_ELEMENTS * lanes), VECTOR_ELEMENTS)
    )
    return cute.make_tensor(row.iterator, layout)[(None, None), lane]


@cute.jit
def load_vectors(
    source: cute.Tensor,
    fragment: cute.Tensor,
    columns: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    lane: cutlass.Int32,
) -> None:
    """Issue this lane's 16-byte loads of one row from global memory; nothing beyond the row is read."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), fragment.element_type, num_bits_per_copy=VECTOR_BITS)
    if cutlass.const_expr(has_partial_last(columns, lanes)):
        last = vectors_per_lane(columns, lanes) - 1
        fragment[None, last].fill(fragment.element_type(0.0))
        for v in cutlass.range_constexpr(last):
            cute.copy(atom, source[None, v], fragment[None, v])
        if (last * lanes + lane) * VECTOR_ELEMENTS < columns:
            cute.copy(atom, source[None, last], fragment[None, last])
    else:
        cute.copy(atom, source, fragment)


@cute.jit
def store_vectors(
    fragment: cute.Tensor,
    target: cute.Tensor,
    columns: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    lane: cutlass.Int32,
) -> None:
    """Store this lane's 16-byte vectors of one row to global memory; nothing beyond the row is written."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), fragment.element_type, num_bits_per_copy=VECTOR_BITS)
    if cutlass.const_expr(has_partial_last(columns, lanes)):
        last = vectors_per_lane(columns, lanes) - 1
        for v in cutlass.range_constexpr(last):
            cute.copy(atom, fragment[None, v], target[None, v])
        if (last * lanes + lane) * VECTOR_ELEMENTS < columns:
            cute.copy(atom, fragment[None, last], target[None, last])
    else:
        cute.copy(atom, fragment, target)


@cute.jit
def to_float32(fragment: cute.Tensor) -> cute.Tensor:
    """The bf16 elements of a fragment as float32, same shape.

    A bf16 is the upper half of a float32, so a register of two takes one shift and one mask; left to the compiler, the
    upper one takes two instructions.
    """
    wide = cute.make_rmem_tensor(fragment.shape, cutlass.Float32)
    bits = cute.recast_tensor(wide, cutlass.Uint32)
    pairs = cute.recast_tensor(fragment, cutlass.Uint32)
    for i in cutlass.range_constexpr(cute.size(pairs)):
        bits[2 * i] = pairs[i] << cutlass.Uint32(16)
        bits[2 * i + 1] = pairs[i] & cutlass.Uint32(0xFFFF0000)
    return wide
