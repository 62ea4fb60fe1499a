# Emitted from generator/templates/rope/indexer_q.py.j2 for op indexer_q on sm_90a. Do not edit.
# dims: H=64
# config: warps=4, heads_per_lane=1, opt_level=3
# spec sha256: 916e698a0225d01de7e04acb441367878c0fb2f5c6a081570dd84893ee45d6bd
"""The indexer's queries rotated, Hadamard-transformed and written as E4M3 with a scale a head: 8 lanes have a head.

A lane loads two vectors of 8 columns, the second of them rotary. Four of the transform's seven rounds stay inside a
lane, for the other three it exchanges half of its numbers (dsv4-reference §6.1 – §6.3).
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Float8E4M3FN, Float8E8M0FNU, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.hadamard import hadamard_sums
from dsv4.generator.device.page_rows import store_at, store_byte
from dsv4.generator.device.rope import load_cos_sin, rotate_row
from dsv4.generator.device.row_quant import quantize_sums_fp8
from dsv4.generator.device.vector_io import lane_of_row, load_vectors, make_fragment, to_float32

VARIANTS = (
    {"code": "fp8", "fold": "none", "pdl": False},
    {"code": "fp8", "fold": "none", "pdl": True},
)

HEADS = 64
COLUMNS = 128
LANES = 8  # of a head: four heads side by side in a warp
WARPS = 4
HEADS_PER_LANE = 1
HEADS_PER_CTA = 16
THREADS = 128
NORM = COLUMNS**-0.5  # of the transform


@cute.kernel
def indexer_q_kernel(
    q: cute.Tensor,
    cos_sin: cute.Tensor,
    out: cute.Tensor,
    scale: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    group, lane = thread // LANES, thread % LANES
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    # Load. Past the last head the last one is read again and nothing stored, because shuffles are of whole warps.
    last = q.shape[0] * HEADS - 1
    numbers = [cta * HEADS_PER_CTA + i * (4 * WARPS) + group for i in range(HEADS_PER_LANE)]
    places = [
        Uint32(cutlass.min(number, last)) for number in numbers
    ]  # unsigned: the shorter division
    queries = [make_fragment(COLUMNS, LANES, BFloat16) for _ in range(HEADS_PER_LANE)]
    for i in cutlass.range_constexpr(HEADS_PER_LANE):
        row = q[places[i] // HEADS, places[i] % HEADS, None]
        load_vectors(lane_of_row(row, COLUMNS, LANES, lane), queries[i], COLUMNS, LANES, lane)
    turns = [load_cos_sin(cos_sin[place // HEADS, None], LANES, lane) for place in places]

    # Rotate, transform, quantise and store.
    for i in cutlass.range_constexpr(HEADS_PER_LANE):
        number = numbers[i]
        values = to_float32(queries[i])
        rotate_row(values, turns[i], LANES, lane)
        factors = hadamard_sums(values, LANES, lane)
        codes, scale_code = quantize_sums_fp8(values, factors, NORM, LANES)
        if number <= last:
            start = out.iterator.toint() + Int64(number) * COLUMNS
            for j in cutlass.range_constexpr(4):  # four columns of each 32
                store_at(start + (j * 32 + lane * 4), codes[j])
            if lane == 0:
                store_byte(scale.iterator.toint() + Int64(number), scale_code)


@cute.jit
def launch(
    q: cute.Tensor,
    cos_sin: cute.Tensor,
    weights: None,
    weights_bf16: None,
    rotated: None,
    codes: cute.Tensor,
    packed: None,
    scale: cute.Tensor,
    folded: None,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = cute.ceil_div(q.shape[0] * HEADS, HEADS_PER_CTA)
    if ctas > 0:
        kernel = indexer_q_kernel(
            q,
            cos_sin,
            codes,
            scale,
            pdl,
        )
        kernel.launch(grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl)


def arguments(variant):
    tokens = cute.sym_int()
    q_strides = [cute.sym_int64(divisibility=8) for _ in range(2)]
    table = make_fake_tensor(
        Float32, (tokens, 64), (cute.sym_int64(divisibility=4), 1), assumed_align=16
    )

    def heads(dtype, columns, align):
        return make_fake_tensor(
            dtype, (tokens, HEADS, columns), (HEADS * columns, columns, 1), assumed_align=align
        )

    return (
        make_fake_tensor(BFloat16, (tokens, HEADS, COLUMNS), (*q_strides, 1), assumed_align=16),
        table,
        None,
        None,
        None,
        heads(Float8E4M3FN, COLUMNS, 16),
        None,
        heads(Float8E8M0FNU, 1, 4),
        None,
        Float32(1.0),
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
