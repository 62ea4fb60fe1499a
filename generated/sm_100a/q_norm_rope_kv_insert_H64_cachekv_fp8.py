# Emitted from generator/templates/rope/q_norm_rope_kv_insert.py.j2 for op q_norm_rope_kv_insert on sm_100a. Do not edit.
# dims: H=64
# config: warps=4, heads_per_warp=1, opt_level=3
# spec sha256: c8a2ca0bf64e8ba551243e5554eecd80a5e322eab40fcc54f67a58bf205b14b3
"""Queries normalised and rotated, keys normalised, rotated and stored in FP8 pages: a warp has a row of 512.

The first CTAs take the keys, 4 tokens each, because theirs is the longer way; the others take the queries,
4 heads each. A lane holds two 16-byte vectors of a row; the last 8 lanes' second ones are the
rotary columns. float32 from the load to the one rounding at the end (dsv4-reference §3.2, §3.4, §4.1, §4.3).
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint8
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.page_rows import store_kv_fp8, to_bf16
from dsv4.generator.device.rms_scale import inverse_rms, product
from dsv4.generator.device.rope import load_cos_sin, rotate_row
from dsv4.generator.device.fragments import scaled_by
from dsv4.generator.device.row_reduce import sum_of_squares, sum_over_lanes
from dsv4.generator.device.vector_io import (
    lane_of_row,
    load_vectors,
    make_fragment,
    store_vectors,
    to_float32,
)

VARIANTS = (
    {"cache": "kv_fp8", "pdl": False},
    {"cache": "kv_fp8", "pdl": True},
)

HEADS = 64
COLUMNS = 512
LANES = 32
WARPS = 4
THREADS = 128


@cute.jit
def wait_for_inputs(pdl: cutlass.Constexpr[bool]):
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()


@cute.jit
def load_row(row: cute.Tensor, lane: Int32) -> cute.Tensor:
    fragment = make_fragment(COLUMNS, LANES, BFloat16)
    load_vectors(lane_of_row(row, COLUMNS, LANES, lane), fragment, COLUMNS, LANES, lane)
    return fragment


@cute.jit
def insert_key(
    kv: cute.Tensor,
    kv_norm: cute.Tensor,
    cos_sin: cute.Tensor,
    pool: cute.Tensor,
    page: cute.FastDivmodDivisorV2,
    rows: cute.Tensor,
    eps: Float32,
    token: Int32,
    lane: Int32,
    pdl: cutlass.Constexpr[bool],
):
    weight = load_row(kv_norm, lane)
    wait_for_inputs(pdl)
    if token < kv.shape[0]:
        row = rows[token]
        cute.arch.sync_warp()  # keeps the compiler from moving this load behind the first use of the key
        key = load_row(kv[token, None], lane)
        turn = load_cos_sin(cos_sin[token, None], LANES, lane)
        # The sum of squares is on its way while the weight and the rotation are applied: both commute with the scale.
        squares = sum_over_lanes(sum_of_squares(key), LANES)
        turned = product(key, weight)
        rotate_row(turned, turn, LANES, lane)
        values = scaled_by(turned, inverse_rms(squares, COLUMNS, eps))
        store_kv_fp8(values, pool, row, page, LANES, lane)


@cute.jit
def turn_queries(
    q: cute.Tensor,
    cos_sin: cute.Tensor,
    q_out: cute.Tensor,
    eps: Float32,
    number: Int32,
    lane: Int32,
    pdl: cutlass.Constexpr[bool],
):
    token, head = number // HEADS, number % HEADS
    wait_for_inputs(pdl)
    if token < q.shape[0]:
        query = load_row(q[token, head, None], lane)
        turn = load_cos_sin(cos_sin[token, None], LANES, lane)
        squares = sum_over_lanes(sum_of_squares(query), LANES)
        turned = to_float32(query)
        rotate_row(turned, turn, LANES, lane)
        result = to_bf16(scaled_by(turned, inverse_rms(squares, COLUMNS, eps)))
        store_vectors(
            result,
            lane_of_row(q_out[token, head, None], COLUMNS, LANES, lane),
            COLUMNS,
            LANES,
            lane,
        )


@cute.kernel
def q_norm_rope_kv_insert_kernel(
    q: cute.Tensor,
    kv: cute.Tensor,
    kv_norm: cute.Tensor,
    cos_sin: cute.Tensor,
    pool: cute.Tensor,
    page: cute.FastDivmodDivisorV2,
    rows: cute.Tensor,
    q_out: cute.Tensor,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    warp, lane = cute.arch.make_warp_uniform(thread // LANES), thread % LANES
    key_ctas = cute.ceil_div(kv.shape[0], WARPS)
    if cta < key_ctas:
        insert_key(kv, kv_norm, cos_sin, pool, page, rows, eps, cta * WARPS + warp, lane, pdl)
    else:
        turn_queries(q, cos_sin, q_out, eps, (cta - key_ctas) * WARPS + warp, lane, pdl)


@cute.jit
def launch(
    q: cute.Tensor,
    kv: cute.Tensor,
    kv_norm: cute.Tensor,
    cos_sin: cute.Tensor,
    pool: cute.Tensor,
    plain_pool: None,
    rows: cute.Tensor,
    q_out: cute.Tensor,
    page: Int32,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    tokens = q.shape[0]
    ctas = cute.ceil_div(tokens, WARPS) + cute.ceil_div(tokens * HEADS, WARPS)
    if ctas > 0:
        # The host prepares the division by the page, which would be waited for before the first store.
        divisor = cute.fast_divmod_create_divisor_v2(page)
        kernel = q_norm_rope_kv_insert_kernel(
            q, kv, kv_norm, cos_sin, pool, divisor, rows, q_out, eps, pdl
        )
        kernel.launch(grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl)


def arguments(variant):
    tokens = cute.sym_int()

    def heads():
        strides = [cute.sym_int64(divisibility=8) for _ in range(2)]
        return make_fake_tensor(BFloat16, (tokens, HEADS, COLUMNS), (*strides, 1), assumed_align=16)

    def matrix(dtype, count, columns, divisibility):
        stride = cute.sym_int64(divisibility=divisibility)
        return make_fake_tensor(dtype, (count, columns), (stride, 1), assumed_align=16)

    return (
        heads(),
        matrix(BFloat16, tokens, COLUMNS, 8),
        make_fake_tensor(BFloat16, (COLUMNS,), (1,), assumed_align=16),
        matrix(Float32, tokens, 64, 4),
        matrix(Uint8, cute.sym_int(), cute.sym_int(), 16),
        None,
        make_fake_tensor(Int64, (tokens,), (1,), assumed_align=8),
        heads(),
        Int32(1),
        Float32(0.0),
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
