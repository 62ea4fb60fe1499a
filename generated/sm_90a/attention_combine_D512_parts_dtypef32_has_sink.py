# Emitted from generator/templates/attention/attention_combine.py.j2 for op attention_combine on sm_90a. Do not edit.
# dims: D=512
# config: warps=4, opt_level=3
# spec sha256: 3a6f00497e48819f2e747629b6c711c7b7c59d4ff69b414b1b721d8a1a9fc22a
"""Attention over parts of the keys put together: a warp for each token and head, 512 columns, the sink once."""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device import softmax
from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.segment_merge import merge_columns, merged_statistics

VARIANTS = (
    {"parts_dtype": "f32", "has_sink": True, "pdl": False},
    {"parts_dtype": "f32", "has_sink": True, "pdl": True},
)

COLUMNS = 512
GROUPS = COLUMNS // 8  # of eight columns
WARPS = 4  # rows of a CTA
THREADS = 128


@cute.kernel
def attention_combine_kernel(
    parts: cute.Tensor,
    part_lse: cute.Tensor,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    lane = thread % 32
    heads = Int32(out.shape[1])
    row = cta * WARPS + thread // 32
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    if row < out.shape[0] * heads:
        token, head = row // heads, row % heads
        lses = part_lse[None, token, head]
        shift, total = merged_statistics(lses, lane)
        below = total
        below += cute.math.exp2(sink[head] * softmax.LOG2_E - shift, fastmath=True)
        inverse = Float32(0.0) if total == Float32(0.0) else cute.arch.rcp_approx(below)
        if lane == 0:
            row_lse = (shift + cute.math.log2(total, fastmath=True)) * softmax.LN_2
            lse[token, head] = -Float32.inf if total == Float32(0.0) else row_lse
        own_out = out[token, head, None]
        merged = merge_columns(parts[None, token, head, None], lses, shift, inverse, lane, COLUMNS)
        for number in cutlass.range_constexpr((GROUPS + 31) // 32):
            group = lane + 32 * number
            if group < GROUPS:
                store_at((own_out.iterator + 8 * group).toint(), to_bf16(merged[None, number]))


@cute.jit
def launch(
    parts: cute.Tensor,
    part_lse: cute.Tensor,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = (out.shape[0] * out.shape[1] + WARPS - 1) // WARPS
    if ctas > 0:
        attention_combine_kernel(parts, part_lse, sink, out, lse, pdl).launch(
            grid=(ctas, 1, 1), block=(THREADS, 1, 1), stream=stream, use_pdl=pdl
        )


def arguments(variant):
    count, tokens, heads = [cute.sym_int() for _ in range(3)]

    def strides(number, multiple=1):
        return tuple(cute.sym_int64(divisibility=multiple) for _ in range(number))

    parts = make_fake_tensor(
        Float32,
        (count, tokens, heads, COLUMNS),
        (*strides(3, 8), 1),
        assumed_align=16,
    )
    sink = (
        make_fake_tensor(Float32, (heads,), (1,), assumed_align=4) if variant["has_sink"] else None
    )
    return (
        parts,
        make_fake_tensor(Float32, (count, tokens, heads), strides(3), assumed_align=4),
        sink,
        make_fake_tensor(BFloat16, (tokens, heads, COLUMNS), (*strides(2, 8), 1), assumed_align=16),
        make_fake_tensor(Float32, (tokens, heads), strides(2), assumed_align=4),
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
