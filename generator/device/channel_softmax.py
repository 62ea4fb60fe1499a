"""A weighted mean of tokens with weights of its own in every channel, Σ softmax(score) · value, in parts that merge.

A part is a float32 fragment (channels, 3): of every channel M, the maximum of the scores times log2(e), rounded;
Σ 2^(score · log2(e) − M); and Σ 2^(score · log2(e) − M) · value. M is but a shift, the same wherever the part goes, so
its rounding changes no result. A part without members has −∞, 0 and 0. A NaN, as well as a score of +∞, ends as a NaN
in its channel.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device.row_reduce import WARP_LANES
from dsv4.generator.device.softmax import LOG2_E


@cute.jit
def pool_members(values: cute.Tensor, scores: cute.Tensor) -> cute.Tensor:
    """The part that one thread's members make: both fragments float32 (channels, members)."""
    channels, members = values.shape
    part = cute.make_rmem_tensor((channels, 3), Float32)
    for c in cutlass.range_constexpr(channels):
        maximum = -Float32.inf  # and stays so where all scores are NaN
        for i in cutlass.range_constexpr(members):
            maximum = cute.arch.fmax(maximum, scores[c, i])
        part[c, 0] = maximum * Float32(LOG2_E)
        shift = finite_shift(part[c, 0])
        total, pooled = Float32(0.0), Float32(0.0)
        for i in cutlass.range_constexpr(members):
            weight = cute.math.exp2(scores[c, i] * Float32(LOG2_E) - shift, fastmath=True)
            total = total + weight
            pooled = pooled + weight * values[c, i]
        part[c, 1], part[c, 2] = total, pooled
    return part


@cute.jit
def finite_shift(maximum: Float32) -> Float32:
    """What to subtract from exponents: the maximum, or 0 where there is none, so that −∞ stays −∞."""
    return Float32(0.0) if maximum == -Float32.inf else maximum


@cute.jit
def merged(
    maximum: Float32, total: Float32, pooled: Float32, maximum_2: Float32, total_2: Float32, pooled_2: Float32
) -> tuple[Float32, Float32, Float32]:
    """The three numbers of one channel of two parts together. The smaller maximum's part alone is scaled."""
    top = cute.arch.fmax(maximum, maximum_2)
    low = cute.arch.fmin(maximum, maximum_2)
    scale = cute.math.exp2(low - finite_shift(top), fastmath=True)
    is_first = maximum >= maximum_2
    own = Float32(1.0) if is_first else scale
    other = scale if is_first else Float32(1.0)
    return top, total * own + total_2 * other, pooled * own + pooled_2 * other


@cute.jit
def merge_over_warp(part: cute.Tensor, lanes: cutlass.Constexpr[int]) -> None:
    """Merge the parts of a warp's threads that have the same channels, ``lanes`` apart: in all of them, in place."""
    distance = lanes
    while cutlass.const_expr(distance < WARP_LANES):
        for c in cutlass.range_constexpr(cute.size(part, mode=[0])):
            theirs = [cute.arch.shuffle_sync_bfly(part[c, k], offset=distance) for k in range(3)]
            part[c, 0], part[c, 1], part[c, 2] = merged(part[c, 0], part[c, 1], part[c, 2], *theirs)
        distance *= 2


@cute.jit
def publish(part: cute.Tensor, shared: cute.Tensor) -> None:
    """Write a part to shared memory (channels, 3), where the channels lie together, aligned to 16 bytes."""
    for k in cutlass.range_constexpr(3):
        cute.autovec_copy(part[None, k], shared[None, k])


@cute.jit
def merge_published(part: cute.Tensor, shared: cute.Tensor) -> None:
    """Take a part from shared memory (:func:`publish`) into ``part``."""
    theirs = cute.make_rmem_tensor(part.shape, Float32)
    for k in cutlass.range_constexpr(3):
        cute.autovec_copy(shared[None, k], theirs[None, k])
    for c in cutlass.range_constexpr(cute.size(part, mode=[0])):
        own, other = [part[c, k] for k in range(3)], [theirs[c, k] for k in range(3)]
        part[c, 0], part[c, 1], part[c, 2] = merged(*own, *other)


@cute.jit
def mean_of_published(
    shared: cute.Tensor, threads: cutlass.Constexpr[int], thread: Int32
) -> tuple[Float32, Int32, Int32]:
    """The mean of one channel over many published parts, float32 [parts, 3, channels]; all ``threads`` take part.

    ``threads`` / channels (1 … 32) neighbours of a warp share a channel: each takes every so manieth part, then
    shuffles merge. Returns the mean, its channel, and this thread's number among the neighbours. Conflicts are avoided
    where a part begins 32 · channels / threads banks after the one before.
    """
    parts, _, channels = shared.shape
    sharing = threads // channels
    channels_of_warp = WARP_LANES // sharing
    lane = thread % WARP_LANES
    channel, number = thread // WARP_LANES * channels_of_warp + lane % channels_of_warp, lane // channels_of_warp
    found = cute.make_rmem_tensor((parts // sharing, 3), Float32)
    for i in cutlass.range_constexpr(parts // sharing):
        for k in cutlass.range_constexpr(3):
            found[i, k] = shared[i * sharing + number, k, channel]
    top = found[0, 0]
    for i in cutlass.range_constexpr(1, parts // sharing):
        top = cute.arch.fmax(top, found[i, 0])
    shift = finite_shift(top)
    total, pooled = Float32(0.0), Float32(0.0)
    for i in cutlass.range_constexpr(parts // sharing):
        scale = cute.math.exp2(found[i, 0] - shift, fastmath=True)
        total = total + found[i, 1] * scale
        pooled = pooled + found[i, 2] * scale
    distance = channels_of_warp
    while cutlass.const_expr(distance < WARP_LANES):
        theirs = [cute.arch.shuffle_sync_bfly(own, offset=distance) for own in (top, total, pooled)]
        top, total, pooled = merged(top, total, pooled, *theirs)
        distance *= 2
    return quotient(pooled, total), channel, number


@cute.jit
def mean_of(part: cute.Tensor) -> cute.Tensor:
    """Σ weight · value / Σ weight of a part, float32 (channels, 1)."""
    mean = cute.make_rmem_tensor((cute.size(part, mode=[0]), 1), Float32)
    for c in cutlass.range_constexpr(cute.size(part, mode=[0])):
        mean[c, 0] = quotient(part[c, 2], part[c, 1])
    return mean


@cute.jit
def quotient(pooled: Float32, total: Float32) -> Float32:
    """pooled / total; 0 where there is no member and both are 0."""
    return pooled * cute.arch.rcp_approx(Float32(1.0) if total == 0.0 else total)
