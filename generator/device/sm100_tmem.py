"""Tensor memory (TMEM) of sm_100: views with one row per thread, loads, stores, fences.

TMEM is 128 lanes by up to 512 columns of 32 bits. An MMA with 128 rows puts row r of its result on lane r and column c
in column c. Warp ``w`` of a warpgroup reaches lanes 32·(w mod 4) … +31 only, and the 32x32b copies give one lane to one
thread: thread t of a warpgroup owns row t, so that a reduction along a row needs no other thread.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass._mlir.dialects import nvvm
from cutlass.cute.nvgpu import tcgen05

LANES = 128
LANE_STRIDE = 1 << 16
"""TMEM addresses hold the lane in bits 31:16 and the column in bits 15:0."""

COPY_COLUMNS = 32
"""Columns moved by one load or store instruction of a thread, at most."""


def rows_view(tmem: cute.Pointer, columns: int) -> cute.Tensor:
    """The ``(128, columns)`` float32 cells from ``tmem`` on: mode 0 is the lane, mode 1 the column."""
    return cute.make_tensor(tmem, cute.make_layout((LANES, columns), stride=(LANE_STRIDE, 1)))


@cute.jit
def column_of(columns: cutlass.Constexpr[tuple], group: cutlass.Int32) -> cutlass.Int32:
    """``columns[group]`` for a group that is known at run time only, so that both warpgroups run the same code."""
    column = cutlass.Int32(columns[0])
    for other in cutlass.range_constexpr(1, len(columns)):
        column = cutlass.Int32(columns[other]) if group == other else column
    return column


def copy_width(columns: int) -> int:
    """Columns of one copy instruction: the largest power of two up to 32 that divides ``columns``."""
    width = COPY_COLUMNS
    while columns % width:
        width //= 2
    return width


def make_row_fragment(columns: int) -> cute.Tensor:
    """Registers for one thread's row of ``columns`` float32; element i is column i."""
    return cute.make_rmem_tensor(cute.make_layout(columns), cutlass.Float32)


def _instruction_view(fragment: cute.Tensor, like: cute.Tensor) -> cute.Tensor:
    # The copy wants ((values, 1), 1, instructions); a row fragment is flat, with the same order of elements.
    assert cute.size(like) == cute.size(fragment), f"{like.layout} and {fragment.layout} differ in size"
    return cute.make_tensor(fragment.iterator, cute.make_layout(like.shape))


@cute.jit
def load_row(source: cute.Tensor, fragment: cute.Tensor, thread: cutlass.Int32) -> None:
    """Issue the loads of this thread's row of ``source`` (128, columns) into ``fragment`` (columns,), float32.

    Collective over the warp. The registers may be read after :func:`wait_loads`.
    """
    width = cutlass.const_expr(copy_width(cute.size(source, mode=[1])))
    atom = cute.make_copy_atom(tcgen05.Ld32x32bOp(tcgen05.Repetition(width)), cutlass.Float32)
    copy = tcgen05.make_tmem_copy(atom, source).get_slice(thread)
    cells = copy.partition_S(source)
    rows = copy.partition_D(cute.make_identity_tensor(source.shape))
    cute.copy(copy, cells, _instruction_view(fragment, rows))


@cute.jit
def store_row(fragment: cute.Tensor, target: cute.Tensor, thread: cutlass.Int32) -> None:
    """Issue the stores of ``fragment`` (columns,) into this thread's row of ``target`` (128, columns), float32.

    Always through float32 registers, whatever the bits mean: packed bf16 pairs travel as 32-bit cells. Collective over
    the warp; nobody else may read before :func:`publish_stores` and an arrival.
    """
    width = cutlass.const_expr(copy_width(cute.size(target, mode=[1])))
    atom = cute.make_copy_atom(tcgen05.St32x32bOp(tcgen05.Repetition(width)), cutlass.Float32)
    copy = tcgen05.make_tmem_copy(atom, target).get_slice(thread)
    cells = copy.partition_D(target)
    rows = copy.partition_S(cute.make_identity_tensor(target.shape))
    cute.copy(copy, _instruction_view(fragment, rows), cells)


@cute.jit
def wait_loads() -> None:
    """Wait until the registers of this thread's earlier TMEM loads are written."""
    cute.arch.fence_view_async_tmem_load()


@cute.jit
def wait_stores() -> None:
    """Wait until this thread's earlier TMEM stores are performed."""
    cute.arch.fence_view_async_tmem_store()


@cute.jit
def fence_before_arrive() -> None:
    """Order this thread's TMEM accesses before the arrival that follows."""
    nvvm.tcgen05_fence(nvvm.Tcgen05FenceKind.BEFORE_THREAD_SYNC)


@cute.jit
def fence_after_wait() -> None:
    """Order this thread's TMEM accesses and MMAs after the barrier wait that precedes."""
    nvvm.tcgen05_fence(nvvm.Tcgen05FenceKind.AFTER_THREAD_SYNC)


@cute.jit
def commit(barrier: cute.Pointer) -> None:
    """One arrival on ``barrier`` when every MMA that this warp has issued so far is complete.

    The MMAs of a warp complete in the order of issue, and the commit also orders them after one another.
    """
    with cute.arch.elect_one():
        tcgen05.commit(barrier)
