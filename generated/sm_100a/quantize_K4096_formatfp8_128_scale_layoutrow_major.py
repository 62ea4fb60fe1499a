# Emitted from generator/templates/quant/quantize.py.j2 for op quantize on sm_100a. Do not edit.
# dims: K=4096
# config: row_parts=4, threads_per_part=128, rows_per_cta=2, opt_level=3
# spec sha256: f2ff3090830c9c41813a8d4af9c6eed455d2a5078de2d3a53bfb35cdd676b84d
"""Rows of 4096 bf16 as E4M3 with an E8M0 scale for each 128 columns.

4 CTAs share a row. 128 threads load 1024 columns 16 bytes at a time and store their codes 8 bytes at a time.
The 16 lanes of a block find its largest magnitude by shuffles; the first of them stores the scale.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float8E8M0FNU
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.block_quant import BLOCK, VECTOR_BYTES, encode_vectors
from dsv4.generator.device.packed_rows import lane_of_part, packed_lane_of_part, store_packed
from dsv4.generator.device.scale_layouts import store_scales
from dsv4.generator.device.vector_io import load_vectors, make_fragment

VARIANTS = (
    {"format": "fp8_128", "scale_layout": "row_major", "pdl": False},
    {"format": "fp8_128", "scale_layout": "row_major", "pdl": True},
)

FORMAT = "fp8_128"
SCALE_LAYOUT = "row_major"
ROW = 4096
ROW_PARTS = 4
COLUMNS = ROW // ROW_PARTS  # of the part of a row that a group of threads works on
LANES = 128  # threads that share the part
ROWS_PER_CTA = 2
THREADS = 256
BLOCKS = ROW // BLOCK[FORMAT]


@cute.kernel
def quantize_kernel(
    x: cute.Tensor,
    codes: cute.Tensor,
    scale: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    lane, group = thread % LANES, thread // LANES
    part, row = cta % ROW_PARTS, cta // ROW_PARTS * ROWS_PER_CTA + group

    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    if row < x.shape[0]:
        values = make_fragment(COLUMNS, LANES, BFloat16)
        x_lane = lane_of_part(x, COLUMNS, ROW_PARTS, LANES, part, lane)
        load_vectors(x_lane[row, None, None], values, COLUMNS, LANES, lane)
        packed, scales = encode_vectors(values, FORMAT)
        code_lane = packed_lane_of_part(
            codes, VECTOR_BYTES[FORMAT], COLUMNS, ROW_PARTS, LANES, part, lane
        )
        store_packed(packed, code_lane[row, None, None], COLUMNS, LANES, lane)
        store_scales(scales, scale, SCALE_LAYOUT, BLOCK[FORMAT], COLUMNS, LANES, row, part, lane)


@cute.jit
def launch(
    x: cute.Tensor,
    input_scale: None,
    codes: cute.Tensor,
    scale: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    rows = x.shape[0]
    ctas = cute.ceil_div(rows, ROWS_PER_CTA) * ROW_PARTS
    if ctas > 0:
        quantize_kernel(x, codes, scale, pdl).launch(
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

    codes = matrix(Float8E4M3FN, ROW)
    scale = scales(rows, BLOCKS)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return matrix(BFloat16, ROW), None, codes, scale, variant["pdl"], stream
