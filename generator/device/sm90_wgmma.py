"""wgmma for one warpgroup at a time: 64 rows, operands in 128-byte-swizzled shared memory, float32 accumulators.

Every tile here belongs to one warpgroup (``atom_layout`` (1, 1, 1)); a CTA tile of 128 or 192 rows is two or three of
them. An accumulator fragment of N columns is ``((2, 2, N/8), 1, 1)``: two neighbouring columns, two rows that are
eight apart, N/8 blocks of eight columns (PTX ISA, "wgmma m64nNk16, accumulator D").
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32
from cutlass.cute.nvgpu import OperandMajorMode, warp, warpgroup

WARPGROUP_ROWS = 64
WARPGROUP_THREADS = 128
SWIZZLE_COLUMNS = 64  # bf16 elements in the 128 bytes that one swizzle pattern spans


def k_major_smem_layout(rows: int, columns: int, slots: int):
    """``(rows, columns, slots)`` bf16 tiles, columns contiguous, swizzled over 128 bytes.

    A tile is stored as columns/64 blocks of ``rows`` x 128 bytes, so a range of columns that starts and ends at a
    multiple of 64 is one piece of memory. Raises AssertionError if the swizzle pattern does not fit.
    """
    assert columns % SWIZZLE_COLUMNS == 0, f"columns={columns}: a multiple of {SWIZZLE_COLUMNS} is needed"
    assert rows % 8 == 0, f"rows={rows}: a multiple of 8 is needed"
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, BFloat16)
    return cute.tile_to_shape(atom, (rows, columns, slots), order=(0, 1, 2))


def transposed(tile: cute.Tensor) -> cute.Tensor:
    """The view ``(columns, rows, slots)`` of a ``(rows, columns, slots)`` tile."""
    rows, columns, slots = (cute.size(tile, mode=[mode]) for mode in range(3))
    return cute.composition(tile, cute.make_ordered_layout((columns, rows, slots), order=(1, 0, 2)))


def column_part(tile: cute.Tensor, part, parts: int) -> cute.Tensor:
    """Slots ``part``, ``part + parts``, … of a ``(columns, rows, slots)`` tile, where ``parts`` slots make a whole."""
    if parts == 1:
        return tile
    return cute.logical_divide(tile, (None, None, parts))[None, None, (part, None)]


def tiled_mma_ss(columns: int, b_major: OperandMajorMode = OperandMajorMode.K) -> cute.TiledMma:
    """64 x ``columns`` x 16, A (K-major) and B from shared memory."""
    return _tiled_mma(columns, warpgroup.OperandSource.SMEM, b_major)


def tiled_mma_rs(columns: int, b_major: OperandMajorMode = OperandMajorMode.MN) -> cute.TiledMma:
    """64 x ``columns`` x 16, A from registers, B from shared memory."""
    return _tiled_mma(columns, warpgroup.OperandSource.RMEM, b_major)


def _tiled_mma(columns: int, a_source, b_major) -> cute.TiledMma:
    assert columns % 8 == 0 and 8 <= columns <= 256, f"columns={columns}: a multiple of 8 up to 256 is needed"
    op = warpgroup.MmaF16BF16Op(BFloat16, Float32, (WARPGROUP_ROWS, columns, 16), a_source, OperandMajorMode.K, b_major)
    return cute.make_tiled_mma(cute.make_mma_atom(op), (1, 1, 1))


def accumulator(columns: int) -> cute.Tensor:
    """A float32 accumulator fragment of one warpgroup's 64 x ``columns`` tile."""
    return cute.make_rmem_tensor(((2, 2, columns // 8), 1, 1), Float32)


def rows_of(fragment: cute.Tensor) -> cute.Tensor:
    """The ``(2, N/4)`` view of an accumulator fragment: this thread's two rows and its columns in order."""
    blocks = cute.size(fragment) // 4
    assert cute.size(fragment) == 4 * blocks and fragment.shape == ((2, 2, blocks), 1, 1), fragment.shape
    return cute.make_tensor(fragment.iterator, cute.make_layout((2, (2, blocks)), stride=(2, (1, 4))))


def as_operand_a(fragment: cute.Tensor, thr_mma: cute.ThrMma, k: int) -> cute.Tensor:
    """An accumulator-shaped bf16 fragment of 64 x ``k``, seen as operand A of the next product.

    The registers of two neighbouring accumulator blocks of eight columns are, in order, those of one k=16 step of
    operand A: no data moves (PTX ISA, "wgmma m64k16, A in registers").
    """
    shape = thr_mma.partition_shape_A((WARPGROUP_ROWS, k))
    assert cute.size(shape) == cute.size(fragment), f"{shape} does not hold {fragment.shape}"
    assert shape == ((2, 2, 2), 1, k // 16), shape
    return cute.make_tensor(fragment.iterator, cute.make_layout(shape))


@cute.jit
def issue(tiled_mma: cute.TiledMma, acc, a, b, accumulate: cutlass.Constexpr[bool]):
    """Issues acc (+)= a·b as one wgmma group and does not wait for it.

    ``a`` and ``b`` are operand fragments ``(MMA, M or N, k steps)`` of one tile.
    """
    k_steps = cute.size(b, mode=[2])
    assert cute.size(a, mode=[2]) == k_steps, f"A has {cute.size(a, mode=[2])} k steps, B {k_steps}"
    warpgroup.fence()
    add_products(tiled_mma, acc, a, b, 0, accumulate)
    warpgroup.commit_group()


@cute.jit
def add_products(
    tiled_mma: cute.TiledMma, acc, a, b, first_step: cutlass.Constexpr[int], accumulate: cutlass.Constexpr[bool]
):
    """acc (+)= a·b over the k steps of ``a`` and as many of ``b`` from ``first_step`` on, in the caller's group."""
    atom = cute.make_mma_atom(tiled_mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, accumulate)
    for step in cutlass.range_constexpr(cute.size(a, mode=[2])):
        cute.gemm(atom, acc, a[None, None, step], b[None, None, first_step + step], acc)
        atom.set(warpgroup.Field.ACCUMULATE, True)


@cute.jit
def store_accumulator(acc, tiled_mma: cute.TiledMma, smem_tile, thread):
    """Writes an accumulator fragment as bf16 to a row-major ``(64, columns)`` tile by stmatrix.

    The caller fences (``fence_view_async_shared``) and synchronises the warpgroup before anyone reads the tile.
    """
    narrow = cute.make_rmem_tensor(acc.layout, BFloat16)
    narrow.store(acc.load().to(BFloat16))
    copy = cute.make_tiled_copy_C(cute.make_copy_atom(warp.StMatrix8x8x16bOp(False, 4), BFloat16), tiled_mma)
    thread_copy = copy.get_slice(thread)
    cute.copy(copy, thread_copy.retile(narrow), thread_copy.partition_D(smem_tile))
