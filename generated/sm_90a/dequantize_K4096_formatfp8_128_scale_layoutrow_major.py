# Emitted from generator/templates/quant/dequantize.py.j2 for op dequantize on sm_90a. Do not edit.
# dims: K=4096
# config: row_parts=4, threads=128, opt_level=3
# spec sha256: 7cfadf0e3f1df1753741aaa0e84e3be5761afd3e6f658a01d9d8a0641c5c7036
"""Rows of 4096 E4M3 codes with a scale for each 128 columns, back as bf16.

4 CTAs share a row. A thread loads the codes of 8 columns, 8 bytes, and their scale, and stores 16 bytes.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float8E8M0FNU
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.block_quant import BLOCK, VECTOR_BYTES, decode_vector
from dsv4.generator.device.packed_rows import (
    lane_of_part,
    load_packed,
    make_packed,
    packed_lane_of_part,
)
from dsv4.generator.device.scale_layouts import load_scale
from dsv4.generator.device.vector_io import make_fragment, store_vectors, vectors_per_lane

VARIANTS = (
    {"format": "fp8_128", "scale_layout": "row_major", "pdl": False},
    {"format": "fp8_128", "scale_layout": "row_major", "pdl": True},
)

FORMAT = "fp8_128"
SCALE_LAYOUT = "row_major"
ROW = 4096
ROW_PARTS = 4
COLUMNS = ROW // ROW_PARTS  # of the part of a row that a CTA works on
THREADS = 128
BLOCKS = ROW // BLOCK[FORMAT]
SCALES_ARE_E8M0 = True


@cute.kernel
def dequantize_kernel(
    codes: cute.Tensor,
    scale: cute.Tensor,
    x: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    lane, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    part, row = cta % ROW_PARTS, cta // ROW_PARTS
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    packed = make_packed(VECTOR_BYTES[FORMAT], COLUMNS, THREADS)
    code_lane = packed_lane_of_part(
        codes, VECTOR_BYTES[FORMAT], COLUMNS, ROW_PARTS, THREADS, part, lane
    )
    load_packed(code_lane[row, None, None], packed, COLUMNS, THREADS, lane)
    steps = []
    for v in cutlass.range_constexpr(vectors_per_lane(COLUMNS, THREADS)):
        # A lane beyond the part reads the part's first scale and stores nothing.
        column = (v * THREADS + lane) * 8
        column = column if column < COLUMNS else 0
        steps.append(
            load_scale(
                scale,
                SCALE_LAYOUT,
                row,
                (part * COLUMNS + column) // BLOCK[FORMAT],
                SCALES_ARE_E8M0,
            )
        )

    values = make_fragment(COLUMNS, THREADS, BFloat16)
    for v in cutlass.range_constexpr(len(steps)):
        vector = decode_vector(packed[None, v], steps[v], FORMAT)
        values[None, v].store(vector.load().to(BFloat16))
    x_lane = lane_of_part(x, COLUMNS, ROW_PARTS, THREADS, part, lane)
    store_vectors(values, x_lane[row, None, None], COLUMNS, THREADS, lane)


@cute.jit
def launch(
    codes: cute.Tensor,
    scale: cute.Tensor,
    input_scale: None,
    x: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = x.shape[0] * ROW_PARTS
    if ctas > 0:
        dequantize_kernel(codes, scale, x, pdl).launch(
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
    return codes, scale, None, matrix(BFloat16, ROW), variant["pdl"], stream
