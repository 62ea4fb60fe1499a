# Emitted from generator/templates/norm/rms_norm.py.j2 for op rms_norm on sm_100a. Do not edit.
# dims: d=4096
# config: threads_per_row=128, rows_per_cta=1, rows_in_flight=1, shuffle_lanes=32, opt_level=3
# spec sha256: f2f0dc1744d6713b333e9531df2a348ae77f090c9260e28af03f2a8d3f94652b
"""RMS norm, y = bf16(w · x / √(mean x² + eps)): 128 threads share a row of 4096.

A CTA normalises 1 row. Every thread holds its part of the row and of the weight in
registers, so x is read once and y is written once, 16 bytes at a time.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.rms_scale import inverse_rms, product, scaled
from dsv4.generator.device.row_reduce import partials_stride, sum_of_squares, sum_over_row
from dsv4.generator.device.vector_io import (
    lane_of_row,
    lane_of_rows,
    load_vectors,
    make_fragment,
    store_vectors,
)

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
THREADS_PER_ROW = 128
ROWS_PER_CTA = 1  # rows side by side, one group of threads each
ROWS_IN_FLIGHT = 1  # rows of one thread, all loaded before the first is used
THREADS = 128
SHUFFLE_LANES = 32  # lanes that shuffles add, before shared memory adds the rest


@cute.struct
class SharedStorage:
    partial_sums: cute.struct.Align[cute.struct.MemRange[Float32, 4], 16]


@cute.kernel
def rms_norm_kernel(
    x: cute.Tensor, w: cute.Tensor, y: cute.Tensor, eps: Float32, pdl: cutlass.Constexpr[bool]
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    lane, group = thread, 0
    rows = [cta]

    # The weight first. With pdl it is read while the launch before this one still runs (which must
    # not write it). Without, the warp's barrier keeps the compiler from moving these loads behind
    # the first use of x, where they would cost a second trip to memory.
    weight = make_fragment(COLUMNS, THREADS_PER_ROW, BFloat16)
    load_vectors(
        lane_of_row(w, COLUMNS, THREADS_PER_ROW, lane), weight, COLUMNS, THREADS_PER_ROW, lane
    )
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    else:
        cute.arch.sync_warp()

    # Load.
    x_lane = lane_of_rows(x, COLUMNS, THREADS_PER_ROW, lane)
    values = [make_fragment(COLUMNS, THREADS_PER_ROW, BFloat16) for _ in range(ROWS_IN_FLIGHT)]
    for i in cutlass.range_constexpr(ROWS_IN_FLIGHT):
        load_vectors(x_lane[rows[i], None, None], values[i], COLUMNS, THREADS_PER_ROW, lane)

    # Reduce: each thread, 32 lanes by shuffles, then the row through shared memory.
    squares = [sum_of_squares(values[i]) for i in range(ROWS_IN_FLIGHT)]
    weighted = [product(values[i], weight) for i in range(ROWS_IN_FLIGHT)]
    storage = SmemAllocator().allocate(SharedStorage)
    partials = storage.partial_sums.get_tensor(
        cute.make_ordered_layout(
            (ROWS_IN_FLIGHT, ROWS_PER_CTA, partials_stride(THREADS_PER_ROW, SHUFFLE_LANES)),
            order=(2, 1, 0),
        )
    )
    sums = sum_over_row(squares, partials, THREADS_PER_ROW, SHUFFLE_LANES, group, lane)

    # Scale and store.
    y_lane = lane_of_rows(y, COLUMNS, THREADS_PER_ROW, lane)
    for i in cutlass.range_constexpr(ROWS_IN_FLIGHT):
        result = scaled(weighted[i], inverse_rms(sums[i], COLUMNS, eps), BFloat16)
        store_vectors(result, y_lane[rows[i], None, None], COLUMNS, THREADS_PER_ROW, lane)


@cute.jit
def launch(
    x: cute.Tensor,
    w: cute.Tensor,
    y: cute.Tensor,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = cute.ceil_div(x.shape[0], ROWS_PER_CTA * ROWS_IN_FLIGHT)
    if ctas > 0:
        rms_norm_kernel(x, w, y, eps, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


def arguments(variant):
    rows = cute.sym_int()

    def matrix():
        row_stride = cute.sym_int64(divisibility=8)
        return make_fake_tensor(BFloat16, (rows, COLUMNS), (row_stride, 1), assumed_align=16)

    weight = make_fake_tensor(BFloat16, (COLUMNS,), (1,), assumed_align=16)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return matrix(), weight, matrix(), Float32(0.0), variant["pdl"], stream
