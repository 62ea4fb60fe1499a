# Emitted from generator/templates/norm/rms_norm_quant.py.j2 for op rms_norm_quant on sm_100a. Do not edit.
# dims: d=4096
# config: threads_per_row=256, rows_per_cta=1, shuffle_lanes=32, opt_level=3
# spec sha256: 3ab736d5fda038a5e991ee517aff71dfe6aef2595fe1ad1d03b5e66901fcbd95
"""RMS norm, y = bf16(w · x / √(mean x² + eps)), and y in E4M3 codes: 256 threads share a row of 4096.

Every thread holds its part of the row and of the weight in registers: x is read once, 16 bytes at a time, and the codes
are those of the rounded y. The lanes of a block of columns find its largest magnitude by shuffles.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float8E8M0FNU, Float32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.block_quant import BLOCK, VECTOR_BYTES, encode_vectors
from dsv4.generator.device.packed_rows import packed_lane_of_part, store_packed
from dsv4.generator.device.rms_scale import inverse_rms, product, scaled
from dsv4.generator.device.row_reduce import partials_stride, sum_of_squares, sum_over_row
from dsv4.generator.device.scale_layouts import store_scales
from dsv4.generator.device.vector_io import lane_of_row, lane_of_rows, load_vectors, make_fragment

VARIANTS = (
    {"format": "fp8_128", "scale_layout": "row_major", "with_y": False, "pdl": False},
    {"format": "fp8_128", "scale_layout": "row_major", "with_y": False, "pdl": True},
)

FORMAT = "fp8_128"
SCALE_LAYOUT = "row_major"
COLUMNS = 4096
LANES = 256  # threads that share a row
THREADS = 256
BLOCKS = COLUMNS // BLOCK[FORMAT]
SHUFFLE_LANES = 32  # lanes that shuffles add, before shared memory adds the rest


@cute.struct
class SharedStorage:
    partial_sums: cute.struct.Align[cute.struct.MemRange[Float32, 8], 16]


@cute.kernel
def rms_norm_quant_kernel(
    x: cute.Tensor,
    w: cute.Tensor,
    codes: cute.Tensor,
    scale: cute.Tensor,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    lane, group, row = thread, 0, cta

    # The parameters first. With pdl they are read while the launch before this one still runs (which
    # must not write them). Without, the warp's barrier keeps the compiler from moving these loads behind
    # the first use of x, where they would cost a second trip to memory.
    weight = make_fragment(COLUMNS, LANES, BFloat16)
    load_vectors(lane_of_row(w, COLUMNS, LANES, lane), weight, COLUMNS, LANES, lane)
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    else:
        cute.arch.sync_warp()

    storage = SmemAllocator().allocate(SharedStorage)
    partials = storage.partial_sums.get_tensor(
        cute.make_ordered_layout((1, 1, partials_stride(LANES, SHUFFLE_LANES)), order=(2, 1, 0))
    )
    values = make_fragment(COLUMNS, LANES, BFloat16)
    load_vectors(
        lane_of_rows(x, COLUMNS, LANES, lane)[row, None, None], values, COLUMNS, LANES, lane
    )

    # Reduce: each thread, 32 lanes by shuffles, then the row through shared memory.
    squares = sum_of_squares(values)
    weighted = product(values, weight)
    (total,) = sum_over_row([squares], partials, LANES, SHUFFLE_LANES, group, lane)

    # Scale, round to bf16, quantise what was rounded, store.
    rounded = scaled(weighted, inverse_rms(total, COLUMNS, eps), BFloat16)
    packed, scales = encode_vectors(rounded, FORMAT)
    code_lane = packed_lane_of_part(codes, VECTOR_BYTES[FORMAT], COLUMNS, 1, LANES, 0, lane)
    store_packed(packed, code_lane[row, None, None], COLUMNS, LANES, lane)
    store_scales(scales, scale, SCALE_LAYOUT, BLOCK[FORMAT], COLUMNS, LANES, row, 0, lane)


@cute.jit
def launch(
    x: cute.Tensor,
    w: cute.Tensor,
    input_scale: None,
    y: None,
    codes: cute.Tensor,
    scale: cute.Tensor,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    rows = x.shape[0]
    ctas = rows
    if ctas > 0:
        rms_norm_quant_kernel(x, w, codes, scale, eps, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


def arguments(variant):
    rows = cute.sym_int()

    def matrix(dtype, columns):
        row_stride = cute.sym_int64(divisibility=8)
        return make_fake_tensor(dtype, (rows, columns), (row_stride, 1), assumed_align=16)

    def scales(rows, columns):
        return make_fake_tensor(
            Float8E8M0FNU, (rows, columns), (cute.sym_int64(), 1), assumed_align=4
        )

    weight = make_fake_tensor(BFloat16, (COLUMNS,), (1,), assumed_align=16)
    codes = matrix(Float8E4M3FN, COLUMNS)
    scale = scales(rows, BLOCKS)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        matrix(BFloat16, COLUMNS),
        weight,
        None,
        None,
        codes,
        scale,
        Float32(0.0),
        variant["pdl"],
        stream,
    )
