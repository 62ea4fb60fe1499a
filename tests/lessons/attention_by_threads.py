"""Attention with one thread a row, plain float32, keys in segments that are merged at the end: mistakes of merging.

Not a test module. ``mistake`` is a constant of the compile: ``"none"``, ``"slices"`` (a softmax for each half of the
head dimension, averaged), ``"no lse"`` (segments averaged without their weights), ``"sink in logits"`` (the sink added
to every real logit, in place of a column of its own) or ``"sink in segments"`` (the column in every segment).
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

THREADS = 64
HEAD_DIM = 16
SEGMENTS = 3
MINUS_INFINITY = -Float32.inf


@cute.jit
def dot(q_row, k_row, first: cutlass.Constexpr[int], last: cutlass.Constexpr[int]) -> Float32:
    total = Float32(0.0)
    for column in cutlass.range_constexpr(first, last):
        total = total + q_row[column].to(Float32) * k_row[column].to(Float32)
    return total


@cute.jit
def segment(q_row, k, v, first, last, scale: Float32, shift: Float32, begin: cutlass.Constexpr[int],
            end: cutlass.Constexpr[int], out):  # fmt: skip
    """O (normalised) of keys first … last − 1 by the logits of columns begin … end − 1; returns their LSE."""
    top = MINUS_INFINITY
    for key in cutlass.range(first, last, unroll=1):
        top = cutlass.max(top, dot(q_row, k[key, None], begin, end) * scale + shift)
    total = Float32(0.0)
    out.fill(0.0)
    for key in cutlass.range(first, last, unroll=1):
        weight = cute.math.exp(dot(q_row, k[key, None], begin, end) * scale + shift - top)
        total = total + weight
        for column in cutlass.range_constexpr(HEAD_DIM):
            out[column] = out[column] + weight * v[key, column].to(Float32)
    for column in cutlass.range_constexpr(HEAD_DIM):
        out[column] = out[column] / total
    return top + cute.math.log(total)


@cute.jit
def add(into, part, weight: Float32):
    for column in cutlass.range_constexpr(HEAD_DIM):
        into[column] = into[column] + part[column] * weight


@cute.kernel
def attention_kernel(q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, sink: cute.Tensor, o: cute.Tensor,
                     lse: cute.Tensor, scale: Float32, mistake: cutlass.Constexpr[str]):  # fmt: skip
    thread, _, _ = cute.arch.thread_idx()
    tile, head, batch = cute.arch.block_idx()
    row = tile * THREADS + thread
    keys = k.shape[1]
    heads_per_kv = q.shape[2] // k.shape[2]
    if row < q.shape[1]:
        q_row = q[batch, row, head, None]
        k_head, v_head = k[batch, None, head // heads_per_kv, None], v[batch, None, head // heads_per_kv, None]
        total, part = cute.make_rmem_tensor((HEAD_DIM,), Float32), cute.make_rmem_tensor((HEAD_DIM,), Float32)
        total.fill(0.0)
        head_sink, shift = sink[head], Float32(0.0)
        if cutlass.const_expr(mistake == "sink in logits"):
            shift = head_sink
        row_lse = MINUS_INFINITY
        if cutlass.const_expr(mistake == "slices"):
            half = cutlass.const_expr(HEAD_DIM // 2)
            for slice_ in cutlass.range_constexpr(2):
                row_lse = segment(
                    q_row, k_head, v_head, 0, keys, scale, shift, slice_ * half, (slice_ + 1) * half, part
                )
                add(total, part, Float32(0.5))
            row_lse = segment(q_row, k_head, v_head, 0, keys, scale, shift, 0, HEAD_DIM, part)
        else:
            for index in cutlass.range_constexpr(SEGMENTS):
                first, last = index * keys // SEGMENTS, (index + 1) * keys // SEGMENTS
                part_lse = segment(q_row, k_head, v_head, first, last, scale, shift, 0, HEAD_DIM, part)
                top = cutlass.max(row_lse, part_lse)
                merged = top + cute.math.log(cute.math.exp(row_lse - top) + cute.math.exp(part_lse - top))
                if cutlass.const_expr(mistake == "no lse"):
                    add(total, part, Float32(1.0 / SEGMENTS))
                else:
                    kept = cute.math.exp(row_lse - merged)
                    for column in cutlass.range_constexpr(HEAD_DIM):
                        total[column] = total[column] * kept
                    add(total, part, cute.math.exp(part_lse - merged))
                if cutlass.const_expr(mistake == "sink in segments"):
                    with_sink = cute.math.exp(head_sink - merged)
                    for column in cutlass.range_constexpr(HEAD_DIM):
                        total[column] = total[column] / (1.0 + with_sink)
                row_lse = merged
        if cutlass.const_expr(mistake not in ("sink in logits", "sink in segments")):
            with_sink = cute.math.exp(head_sink - row_lse)
            for column in cutlass.range_constexpr(HEAD_DIM):
                total[column] = total[column] / (1.0 + with_sink)
        for column in cutlass.range_constexpr(HEAD_DIM):
            o[batch, row, head, column] = total[column].to(BFloat16)
        lse[batch, head, row] = row_lse - shift


@cute.jit
def launch(q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, sink: cute.Tensor, o: cute.Tensor, lse: cute.Tensor,
           scale: Float32, mistake: cutlass.Constexpr[str], stream):  # fmt: skip
    grid = (cute.ceil_div(q.shape[1], THREADS), q.shape[2], q.shape[0])
    attention_kernel(q, k, v, sink, o, lse, scale, mistake).launch(grid=grid, block=(THREADS, 1, 1), stream=stream)


def compile_attention(mistake: str, dump_folder: str):
    """Called like the operator fmha with a sink: q, k, v, sink, o, lse, scale."""
    batch, queries, keys, heads, kv_heads = (cute.sym_int() for _ in range(5))

    def rows(length, count):
        return make_fake_tensor(
            BFloat16, (batch, length, count, HEAD_DIM), (*(cute.sym_int64() for _ in range(3)), 1), assumed_align=2
        )

    lse = make_fake_tensor(Float32, (batch, heads, queries), (cute.sym_int64(), cute.sym_int64(), 1), assumed_align=4)
    return cute.compile(
        launch, rows(queries, heads), rows(keys, kv_heads), rows(keys, kv_heads),
        make_fake_tensor(Float32, (heads,), (1,), assumed_align=4), rows(queries, heads), lse, Float32(1.0), mistake,
        make_fake_stream(use_tvm_ffi_env_stream=True),
        options="--gpu-arch sm_90a --enable-tvm-ffi --keep-ptx --keep-cubin --generate-line-info "
        f"--dump-dir {dump_folder}",
    )  # fmt: skip
