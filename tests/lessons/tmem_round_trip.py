"""What is stored to tensor memory comes back: a row of registers to TMEM and back to global memory, unchanged.

Not a test module. ``reload`` says how the row is loaded: ``"same"`` by the same copies as it was stored, ``"halves"``
by copies of half the width whose registers are taken in the order of another atom, as two independently built atoms
would have them.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.nvgpu import tcgen05
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import sm100_tmem

TMEM_COLUMNS = 128


@cute.kernel
def round_trip_kernel(x: cute.Tensor, y: cute.Tensor, columns: cutlass.Constexpr[int], reload: cutlass.Constexpr[str]):
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    address = SmemAllocator().allocate_array(Int32, 1)
    if warp == 0:
        cute.arch.alloc_tmem(TMEM_COLUMNS, address)
        cute.arch.relinquish_tmem_alloc_permit()
    cute.arch.sync_threads()
    tmem = cute.arch.retrieve_tmem_ptr(Float32, 16, address)
    cells = sm100_tmem.rows_view(tmem, columns)
    row, back = sm100_tmem.make_row_fragment(columns), sm100_tmem.make_row_fragment(columns)
    for column in cutlass.range_constexpr(columns):
        row[column] = x[thread, column]
    sm100_tmem.store_row(row, cells, thread)
    sm100_tmem.wait_stores()
    if cutlass.const_expr(reload == "same"):
        sm100_tmem.load_row(cells, back, thread)
    else:
        atom = cute.make_copy_atom(tcgen05.Ld16x256bOp(tcgen05.Repetition(columns // 8)), Float32)
        copy = tcgen05.make_tmem_copy(atom, cells).get_slice(thread)
        target = copy.partition_D(cute.make_identity_tensor(cells.shape))
        cute.copy(copy, copy.partition_S(cells), cute.make_tensor(back.iterator, cute.make_layout(target.shape)))
    sm100_tmem.wait_loads()
    for column in cutlass.range_constexpr(columns):
        y[thread, column] = back[column]
    cute.arch.sync_threads()
    if warp == 0:
        cute.arch.dealloc_tmem(tmem, TMEM_COLUMNS)


@cute.jit
def launch(x: cute.Tensor, y: cute.Tensor, columns: cutlass.Constexpr[int], reload: cutlass.Constexpr[str], stream):
    round_trip_kernel(x, y, columns, reload).launch(grid=(1, 1, 1), block=(128, 1, 1), stream=stream)


def compile_round_trip(columns: int, reload: str, dump_folder: str):
    """Called with x and y ``[128, columns]`` float32."""

    def cells():
        return make_fake_tensor(Float32, (128, columns), (columns, 1), assumed_align=16)

    return cute.compile(
        launch, cells(), cells(), columns, reload, make_fake_stream(use_tvm_ffi_env_stream=True),
        options="--gpu-arch sm_100a --enable-tvm-ffi --keep-ptx --keep-cubin --generate-line-info "
        f"--dump-dir {dump_folder}",
    )  # fmt: skip
