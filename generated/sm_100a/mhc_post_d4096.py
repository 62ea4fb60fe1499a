# Emitted from generator/templates/mhc/mhc_post.py.j2 for op mhc_post on sm_100a. Do not edit.
# dims: d=4096
# config: threads=128, opt_level=3
# spec sha256: cfb5910a515954bc479903a530a6faa17191e03aa73f857541630a067e41ca43
"""mHC after a sub-layer: X'[t, k, :] = post_k · F[t, :] + Σ_j C[j, k] · X[t, j, :].

A thread works on 8 columns of one token, in all four streams, so each input is read once and each result written
once, 16 bytes at a time. 4 CTAs of 128 threads make a token of 4096 columns.
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
CTAS_PER_TOKEN = 4


@cute.kernel
def mhc_post_kernel(
    update: cute.Tensor,
    streams: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    new_streams: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    token = Int64(cta // CTAS_PER_TOKEN)
    vector = cta % CTAS_PER_TOKEN * THREADS + thread

    # All loads are on their way before the first is used. With pdl only the update can come from the
    # launch before this one; streams and weights are older, and read while it still runs.
    inputs = [load_vector(vector_at(streams[token, j, None], vector)) for j in range(STREAMS)]
    post_weights = load_floats(post[token, None], STREAMS)
    comb_weights = load_floats(comb[token, None, None], STREAMS * STREAMS)
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()
    added = load_vector(vector_at(update[token, None], vector))

    results = mixed_streams(added, inputs, post_weights, comb_weights)
    for k in cutlass.range_constexpr(STREAMS):
        store_vector(results[k], vector_at(new_streams[token, k, None], vector))


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
    ctas = update.shape[0] * CTAS_PER_TOKEN
    if ctas > 0:
        mhc_post_kernel(update, streams, post, comb, new_streams, pdl).launch(
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
