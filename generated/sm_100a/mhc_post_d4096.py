# Emitted from generator/templates/mhc/mhc_post.py.j2 for op mhc_post on sm_100a. Do not edit.
# dims: d=4096
# config: threads=128, few_columns=4, few_tokens=16, opt_level=3
# spec sha256: acece999d3a4d55c157e942298412ee0dea9ef983ca9f3c45baeb5ba0863cbf4
"""mHC after a sub-layer: X'[t, k, :] = post_k · F[t, :] + Σ_j C[j, k] · X[t, j, :].

A thread works on a few columns of one token, in all four streams, so each input is read once and each result written
once: on 8, 16 bytes at a time, or on 4 in steps of up to 16 tokens, where a thread's chain of additions takes longer than the
memory.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int64
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.mhc_streams import (
    STREAMS,
    load_floats,
    load_vector,
    mixed_streams,
    store_vector,
    vector_at,
)

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
THREADS = 128
FEW_TOKENS = 16  # at most, and then
FEW_COLUMNS = 4  # of a thread


@cute.kernel
def mhc_post_kernel(
    update: cute.Tensor,
    streams: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    new_streams: cute.Tensor,
    columns: cutlass.Constexpr[int],
    pdl: cutlass.Constexpr[bool],
):
    """``columns``: of a thread."""
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas_of_token = COLUMNS // (columns * THREADS)
    token = Int64(cta // ctas_of_token)
    vector = cta % ctas_of_token * THREADS + thread

    # All loads are on their way before the first is used: without the warp's barrier the compiler moves some
    # behind that, where they cost a second trip to memory. With pdl only the update can come from the launch
    # before this one; streams and weights are older, and read while it still runs.
    inputs = [
        load_vector(vector_at(streams[token, j, None], vector, columns)) for j in range(STREAMS)
    ]
    post_weights = load_floats(post[token, None], STREAMS)
    comb_weights = load_floats(comb[token, None, None], STREAMS * STREAMS)
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()
    else:
        cute.arch.sync_warp()
    added = load_vector(vector_at(update[token, None], vector, columns))

    results = mixed_streams(added, inputs, post_weights, comb_weights)
    for k in cutlass.range_constexpr(STREAMS):
        store_vector(results[k], vector_at(new_streams[token, k, None], vector, columns))


@cute.jit
def launch(
    update: cute.Tensor,
    streams: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    new_streams: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    tokens = update.shape[0]
    if tokens > FEW_TOKENS:
        launch_with(update, streams, post, comb, new_streams, 8, pdl, stream)
    elif tokens > 0:
        launch_with(update, streams, post, comb, new_streams, FEW_COLUMNS, pdl, stream)


@cute.jit
def launch_with(
    update: cute.Tensor,
    streams: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    new_streams: cute.Tensor,
    columns: cutlass.Constexpr[int],
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = update.shape[0] * (COLUMNS // (columns * THREADS))
    mhc_post_kernel(update, streams, post, comb, new_streams, columns, pdl).launch(
        grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
    )


def arguments(variant):
    tokens = cute.sym_int()

    def compact(dtype, *extents):
        strides = [1]
        for extent in reversed(extents):
            strides.insert(0, strides[0] * extent)
        return make_fake_tensor(dtype, (tokens, *extents), tuple(strides), assumed_align=16)

    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        compact(BFloat16, COLUMNS),
        compact(BFloat16, STREAMS, COLUMNS),
        compact(Float32, STREAMS),
        compact(Float32, STREAMS, STREAMS),
        compact(BFloat16, STREAMS, COLUMNS),
        variant["pdl"],
        stream,
    )
