# Emitted from generator/templates/rope/inverse_rope_quant.py.j2 for op inverse_rope_quant on sm_90a. Do not edit.
# dims: H=64, G=8
# config: warps=4, heads_per_warp=1, opt_level=3
# spec sha256: d8031bd629b5bd0662be6b279c977f25915f0e45c3033d47523a6e5da0c7219d
"""Attention output turned back by the query's position, as bf16: a warp has one head.

A lane holds two 16-byte vectors of a head's 512 columns; the last 8 lanes' second ones are the rotary columns, turned
by the conjugate (dsv4-reference §3.5, §8).
The output's strides are free: groups may lie one after another.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.rope import load_cos_sin, rotate_bf16_row
from dsv4.generator.device.vector_io import lane_of_row, load_vectors, make_fragment, store_vectors

VARIANTS = (
    {"output": "bf16", "scale_layout": "row_major", "pdl": False},
    {"output": "bf16", "scale_layout": "row_major", "pdl": True},
)

HEADS = 64
GROUPS = 8
HEADS_PER_GROUP = 8
COLUMNS = 512
LANES = 32
WARPS = 4
HEADS_PER_WARP = 1
THREADS = 128


@cute.kernel
def inverse_rope_quant_kernel(
    attention: cute.Tensor,
    cos_sin: cute.Tensor,
    grouped: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    warp, lane = cute.arch.make_warp_uniform(thread // LANES), thread % LANES
    number = (cta * WARPS + warp) * HEADS_PER_WARP
    token, first_head = number // HEADS, number % HEADS
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    if token < attention.shape[0]:
        heads = [make_fragment(COLUMNS, LANES, BFloat16) for _ in range(HEADS_PER_WARP)]
        for i in cutlass.range_constexpr(HEADS_PER_WARP):
            source = lane_of_row(attention[token, first_head + i, None], COLUMNS, LANES, lane)
            load_vectors(source, heads[i], COLUMNS, LANES, lane)
        turn = load_cos_sin(cos_sin[token, None], LANES, lane)
        for i in cutlass.range_constexpr(HEADS_PER_WARP):
            group, within = (first_head + i) // HEADS_PER_GROUP, (first_head + i) % HEADS_PER_GROUP
            rotate_bf16_row(heads[i], turn, LANES, lane, inverse=True)
            head = cute.local_tile(grouped[token, group, None], (COLUMNS,), (within,))
            store_vectors(heads[i], lane_of_row(head, COLUMNS, LANES, lane), COLUMNS, LANES, lane)


@cute.jit
def launch(
    attention: cute.Tensor,
    cos_sin: cute.Tensor,
    grouped: cute.Tensor,
    codes: None,
    scale: None,
    scale_f32: None,
    scale_i32: None,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = cute.ceil_div(attention.shape[0] * (HEADS // HEADS_PER_WARP), WARPS)
    if ctas > 0:
        kernel = inverse_rope_quant_kernel(attention, cos_sin, grouped, pdl)
        kernel.launch(grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl)


def arguments(variant):
    tokens = cute.sym_int()

    def rows(dtype, count, columns, divisibility):
        strides = [cute.sym_int64(divisibility=divisibility) for _ in range(2)]
        return make_fake_tensor(dtype, (tokens, count, columns), (*strides, 1), assumed_align=16)

    table = make_fake_tensor(
        Float32, (tokens, 64), (cute.sym_int64(divisibility=4), 1), assumed_align=16
    )
    return (
        rows(BFloat16, HEADS, COLUMNS, 8),
        table,
        rows(BFloat16, GROUPS, HEADS_PER_GROUP * COLUMNS, 8),
        None,
        None,
        None,
        None,
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
