"""The next streams of a pass, worked out where the streams are staged: for a fusion of mhc_post with what follows."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Int32, Int64

from dsv4.generator.device.mhc_project import staged_vector
from dsv4.generator.device.mhc_streams import (
    load_floats,
    load_vector,
    mixed_stream,
    mixed_streams,
    store_vector,
    vector_at,
)
from dsv4.generator.device.mhc_tiling import STREAMS
from dsv4.generator.device.vector_io import VECTOR_ELEMENTS

PART = 4
"""Columns at a time where registers are scarce."""


@cute.jit
def next_streams(
    stage: cute.Tensor,
    update: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    new_streams: cute.Tensor,
    first: Int32,
    column: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Replaces this thread's vectors of ``stage`` by those of the next streams, and stores them to ``new_streams``.

    What is staged is rounded to bf16 as what is stored. Tokens that do not exist stay zeros.
    """
    for half in cutlass.range(2 * tiling.token_tiles, unroll=1):
        token = first + half * 8 + thread % 32 // 4
        if token < update.shape[0]:
            row = Int64(token)
            vector = column // VECTOR_ELEMENTS
            added = load_vector(vector_at(update[row, None], vector))
            post_weights = load_floats(post[row, None], STREAMS)
            comb_weights = load_floats(comb[row, None, None], STREAMS * STREAMS)
            inputs = [staged_vector(stage[None, None, half], j) for j in range(STREAMS)]
            results = mixed_streams(added, inputs, post_weights, comb_weights)
            for k in cutlass.range_constexpr(STREAMS):
                cute.autovec_copy(results[k], stage[None, k, half])
                store_vector(results[k], vector_at(new_streams[row, k, None], vector))


@cute.jit
def next_streams_in_parts(
    stage: cute.Tensor,
    update: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    new_streams: cute.Tensor,
    first: Int32,
    column: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """:func:`next_streams` in a third of the registers: half a vector at a time, and two streams of the four.

    The weights of post and comb are read again for the other half, from the L1 cache.
    """
    for half in cutlass.range(2 * tiling.token_tiles, unroll=1):
        token = first + half * 8 + thread % 32 // 4
        if token < update.shape[0]:
            row = Int64(token)
            vector = column // VECTOR_ELEMENTS
            for part in cutlass.range(VECTOR_ELEMENTS // PART, unroll=1):
                added = _loaded(_part(vector_at(update[row, None], vector), part))
                inputs = [_loaded(_part(stage[None, j, half], part)) for j in range(STREAMS)]
                for k in cutlass.range(STREAMS, unroll=2):
                    result = mixed_stream(added, inputs, post[row, k], [comb[row, j, k] for j in range(STREAMS)])
                    cute.autovec_copy(result, _part(stage[None, k, half], part))
            for k in cutlass.range_constexpr(STREAMS):
                store_vector(staged_vector(stage[None, None, half], k), vector_at(new_streams[row, k, None], vector))


def _part(vector: cute.Tensor, part: Int32) -> cute.Tensor:
    """``PART`` of the columns of a vector, from ``part * PART`` on."""
    return cute.make_tensor(vector.iterator + cute.assume(part * PART, divby=PART), cute.make_layout(PART))


@cute.jit
def _loaded(source: cute.Tensor) -> cute.Tensor:
    """Half a vector, 8 bytes, in registers."""
    values = cute.make_rmem_tensor(source.shape, BFloat16)
    cute.autovec_copy(source, values)
    return values
