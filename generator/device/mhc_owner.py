"""The warp that works out the mixing weights of the tokens that its CTA owns, while the others go on."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64

from dsv4.generator.device.mhc_exchange import send_quad, tell_all
from dsv4.generator.device.mhc_mix import sigmoid, sinkhorn
from dsv4.generator.device.mhc_tiling import QUAD, STREAMS

POST_FIRST, COMB_FIRST = STREAMS, 2 * STREAMS
"""The outputs: four for pre, four for post, sixteen for comb."""


@cute.jit
def logit_parameters(base: cute.Tensor, scale: cute.Tensor, lane: Int32, tiling: cutlass.Constexpr):
    """(scale, base) of the output of this lane; lanes without an output get those of another."""
    output = cutlass.min(lane, tiling.outputs - 1)
    kind = Int32(0)
    if cutlass.const_expr(tiling.outputs > STREAMS):
        kind = Int32(0) if output < POST_FIRST else (Int32(1) if output < COMB_FIRST else Int32(2))
    return scale[kind], base[output]


@cute.jit
def logits_of(
    received: cute.Tensor,
    owned: cutlass.Constexpr[int],
    parameters,
    norm_eps: Float32,
    lane: Int32,
    tiling: cutlass.Constexpr,
):
    """The logit of this lane's output for an owned token, from ``received`` (4, quads, owned tokens, CTAs)."""
    sums = [Float32(0.0) for _ in range(4)]
    count = QUAD * tiling.quads
    piece = cutlass.min(lane, count - 1)
    for peer in cutlass.range_constexpr(tiling.cluster):
        row = received[None, None, owned, peer]
        sums[peer % 4] = sums[peer % 4] + cute.make_tensor(row.iterator, cute.make_layout(count))[piece]
    total = (sums[0] + sums[1]) + (sums[2] + sums[3])
    squares = cute.arch.shuffle_sync(total, tiling.outputs)
    rho = cute.math.rsqrt(squares * Float32(1.0 / (STREAMS * tiling.columns)) + norm_eps, fastmath=False)
    return total * rho * parameters[0] + parameters[1]


@cute.jit
def send_stream_weights(
    value: Float32, weights: cute.Tensor, barrier: cute.Pointer, place: Int32, lane: Int32, tiling: cutlass.Constexpr
):
    """Sends ``value`` of lanes 0 … 3 to ``weights`` (4, tokens) of every CTA, at the token ``place`` of the pass."""
    quad = cute.make_rmem_tensor((QUAD,), Float32)
    for j in cutlass.range_constexpr(STREAMS):
        quad[j] = cute.arch.shuffle_sync(value, j)
    if lane < tiling.cluster:
        send_quad(quad, weights[None, place], barrier, lane)


@cute.jit
def own_pass(
    received: cute.Tensor,
    weights: cute.Tensor,
    logits: cute.Tensor,
    barriers,
    awaited,
    post,
    comb,
    parameters,
    norm_eps: Float32,
    eps: Float32,
    first: Int32,
    tokens: Int32,
    rank: Int32,
    lane: Int32,
    tiling: cutlass.Constexpr,
    iterations: cutlass.Constexpr[int],
):
    """One pass: the stream weights go out first, then post and comb of each owned token to global memory (None before
    the LM head, which has no others).

    ``logits``: shared memory (16, owned tokens) of this warp alone. ``awaited``: whether the columns wait to be told
    that the partial sums have been taken. ``first``: the pass's first token.
    """
    for owned in cutlass.range_constexpr(tiling.owned):
        place = owned * tiling.cluster + rank
        logit = logits_of(received, owned, parameters, norm_eps, lane, tiling)
        gate = sigmoid(logit)
        send_stream_weights(gate + eps, weights, barriers.weights, place, lane, tiling)
        if cutlass.const_expr(tiling.outputs > STREAMS):
            if lane >= POST_FIRST and lane < COMB_FIRST and first + place < tokens:
                post[Int64(first + place), lane - POST_FIRST] = gate * Float32(2.0)
            if lane >= COMB_FIRST and lane < tiling.outputs:
                logits[lane - COMB_FIRST, owned] = logit
    if awaited:
        tell_all(barriers.taken, lane, tiling)
    if cutlass.const_expr(tiling.outputs > STREAMS):
        _store_comb(logits, comb, eps, first, tokens, rank, lane, tiling, iterations)


@cute.jit
def _store_comb(
    logits: cute.Tensor,
    comb: cute.Tensor,
    eps: Float32,
    first: Int32,
    tokens: Int32,
    rank: Int32,
    lane: Int32,
    tiling: cutlass.Constexpr,
    iterations: cutlass.Constexpr[int],
):
    """Each owned token's matrix, worked out by four lanes."""
    cute.arch.sync_warp()
    owned = lane // STREAMS
    row = sinkhorn(logits[None, cutlass.min(owned, tiling.owned - 1)], lane, eps, iterations)
    token = first + owned * tiling.cluster + rank
    if owned < tiling.owned and token < tokens:
        cute.autovec_copy(row, comb[Int64(token), lane % STREAMS, None])
    cute.arch.sync_warp()
