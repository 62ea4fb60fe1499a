# Emitted from generator/templates/moe/swiglu_quant.py.j2 for op swiglu_quant on sm_100a. Do not edit.
# dims: I=2048
# config: row_parts=2, threads_per_part=128, rows_per_cta=1, opt_level=3
# spec sha256: e6e309b69b75934158c4f7600790b1db503f991374902e0fb9ee524b0408eef4
"""Clamped SwiGLU of rows of 2048 gates and as many ups, quantised by blocks of columns.

2 CTAs share a row. 128 threads compute 1024 columns, from 16 bytes of gates and 16 bytes of ups at a time.
The lanes of a block find its largest magnitude by shuffles; the first of them stores the scale.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float8E4M3FN, Float8E8M0FNU, Float32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.block_quant import BLOCK, VECTOR_BYTES, encode_vectors
from dsv4.generator.device.packed_rows import packed_lane_of_part, store_packed
from dsv4.generator.device.scale_layouts import store_scales
from dsv4.generator.device.swiglu import gate_up_lane_of_part, swiglu
from dsv4.generator.device.vector_io import load_vectors, make_fragment

VARIANTS = (
    {
        "gate_up_layout": "halves",
        "weighted": False,
        "format": "fp8_128",
        "scale_layout": "row_major",
        "pdl": False,
    },
    {
        "gate_up_layout": "halves",
        "weighted": False,
        "format": "fp8_128",
        "scale_layout": "row_major",
        "pdl": True,
    },
)

FORMAT = "fp8_128"
SCALE_LAYOUT = "row_major"
INTERLEAVED = False  # runs of 8 gates and 8 ups by turns, or all gates and then all ups
WIDTH = 2048
ROW_PARTS = 2
COLUMNS = WIDTH // ROW_PARTS  # of the part of a row that a CTA works on
LANES = 128  # threads that share the part
THREADS = 128
BLOCKS = WIDTH // BLOCK[FORMAT]


@cute.kernel
def swiglu_quant_kernel(
    gate_up: cute.Tensor,
    codes: cute.Tensor,
    scale: cute.Tensor,
    limit: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    lane, part, row = thread, cta % ROW_PARTS, cta // ROW_PARTS

    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    gate = make_fragment(COLUMNS, LANES, BFloat16)
    up = make_fragment(COLUMNS, LANES, BFloat16)
    lane_view = gate_up_lane_of_part(gate_up, INTERLEAVED, COLUMNS, ROW_PARTS, LANES, part, lane)
    load_vectors(lane_view[row, None, None, 0], gate, COLUMNS, LANES, lane)
    load_vectors(lane_view[row, None, None, 1], up, COLUMNS, LANES, lane)
    values = swiglu(gate, up, limit)
    packed, scales = encode_vectors(values, FORMAT)
    code_lane = packed_lane_of_part(
        codes, VECTOR_BYTES[FORMAT], COLUMNS, ROW_PARTS, LANES, part, lane
    )
    store_packed(packed, code_lane[row, None, None], COLUMNS, LANES, lane)
    store_scales(scales, scale, SCALE_LAYOUT, BLOCK[FORMAT], COLUMNS, LANES, row, part, lane)


@cute.jit
def launch(
    gate_up: cute.Tensor,
    gates: None,
    ups: None,
    route_weight: None,
    input_scale: None,
    h: None,
    codes: cute.Tensor,
    scale: cute.Tensor,
    limit: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    rows = gate_up.shape[0]
    ctas = rows * ROW_PARTS
    if ctas > 0:
        swiglu_quant_kernel(gate_up, codes, scale, limit, pdl).launch(
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

    gate_up = matrix(BFloat16, 2 * WIDTH)
    codes = matrix(Float8E4M3FN, WIDTH)
    scale = scales(rows, BLOCKS)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        gate_up,
        None,
        None,
        None,
        None,
        None,
        codes,
        scale,
        Float32(0.0),
        variant["pdl"],
        stream,
    )
