"""What serves the columns' warps of an mHC kernel with roles: to load, send, own, and solve for comb."""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64

from dsv4.generator.device import mhc_exchange, mhc_owner
from dsv4.generator.device.mhc_mix import sigmoid, sinkhorn
from dsv4.generator.device.mhc_role_barriers import announce, arrive, batch, buffers
from dsv4.generator.device.mhc_tiling import QUAD, STREAMS
from dsv4.generator.device.sm90_ring import acquire, next_position


class Passes(NamedTuple):
    """The passes of one cluster, the number of tokens, and this CTA's rank and lane."""

    first: Int32
    step: Int32
    count: Int32
    tokens: Int32
    rank: Int32
    lane: Int32


@cute.jit
def passes_of(tokens: Int32, lane: Int32, tiling: cutlass.Constexpr):
    """The passes of this CTA's cluster, 1 or more. To be asked for in each role: a number that is kept while the
    weights are loaded is a register that they lack."""
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    first, step = cta // tiling.cluster, ctas // tiling.cluster
    count = cute.ceil_div(cute.ceil_div(tokens, tiling.tokens) - first, step)
    return Passes(first, step, count, tokens, cute.arch.block_idx_in_cluster(), lane)


@cute.jit
def load_pass(number: Int32, slot: Int32, phase: Int32, passes, copy, barriers, tiling: cutlass.Constexpr):
    """The streams of pass ``number`` of the cluster into their stage, when that is free.

    ``copy``: (atom, ``(TMA, pass, slice of the columns, stream)``, ``(TMA, stream and stage)``) of
    ``sm90_tma.tile_copy``. Tokens that do not exist are zeros.
    """
    atom, source, target = copy
    acquire(barriers.full, barriers.empty, slot, phase, tiling.tokens * STREAMS * tiling.slice_columns * 2)
    index = passes.first + number * passes.step
    for j in cutlass.range_constexpr(STREAMS):
        place = target[None, slot * STREAMS + j]
        cute.copy(atom, source[None, index, passes.rank, j], place, tma_bar_ptr=barriers.full + slot)


@cute.jit
def send_pass(number: Int32, slot: Int32, partials, received, passes, barriers, tiling: cutlass.Constexpr):
    """Adds up the warps' ``partials`` (4, tokens, quads, warps) and sends them to the owners' ``received`` (4, quads,
    owned tokens, CTAs, stages)."""
    cute.arch.mbarrier_wait(barriers.summed, number % 2)
    target = received[None, None, None, None, slot]
    mhc_exchange.send_partials(partials, target, barriers.received + slot, passes.rank, passes.lane, tiling, 32)
    arrive(barriers.taken, passes.lane)
    announce(barriers.received + slot, tiling.partial_bytes // tiling.cluster, passes.lane, tiling)


@cute.jit
def own_pass(
    number: Int32,
    slot: Int32,
    phase: Int32,
    received: cute.Tensor,
    weights: cute.Tensor,
    logits,
    post,
    parameters,
    norm_eps: Float32,
    eps: Float32,
    passes,
    barriers,
    tiling: cutlass.Constexpr,
):
    """The stream weights of the owned tokens to everyone, ``post`` to global memory, the logits of comb to ``logits``
    (16, owned tokens, buffers); None both before the LM head, which has four outputs."""
    rank, lane = passes.rank, passes.lane
    first = (passes.first + number * passes.step) * tiling.tokens
    cute.arch.mbarrier_wait(barriers.received + slot, phase)
    values = []
    for owned in cutlass.range_constexpr(tiling.owned):
        own = received[None, None, None, None, slot]
        logit = mhc_owner.logits_of(own, owned, parameters, norm_eps, lane, tiling)
        gate = sigmoid(logit)
        place, target = owned * tiling.cluster + rank, weights[None, None, slot]
        mhc_owner.send_stream_weights(gate + eps, target, barriers.weights + slot, place, lane, tiling)
        values.append((logit, gate))
    announce(barriers.weights + slot, tiling.owned * QUAD * 4, lane, tiling)
    if cutlass.const_expr(tiling.outputs > STREAMS):
        buffer = number % buffers(tiling)
        cute.arch.mbarrier_wait(barriers.solved + buffer, number // buffers(tiling) % 2 ^ 1)
        for owned in cutlass.range_constexpr(tiling.owned):
            place = owned * tiling.cluster + rank
            logit, gate = values[owned]
            if lane >= mhc_owner.POST_FIRST and lane < mhc_owner.COMB_FIRST and first + place < passes.tokens:
                post[Int64(first + place), lane - mhc_owner.POST_FIRST] = gate * Float32(2.0)
            if lane >= mhc_owner.COMB_FIRST and lane < tiling.outputs:
                logits[lane - mhc_owner.COMB_FIRST, owned, buffer] = logit
        arrive(barriers.logits + buffer, lane)


@cute.jit
def solve_passes(
    number: Int32,
    logits: cute.Tensor,
    comb: cute.Tensor,
    eps: Float32,
    passes,
    barriers,
    tiling: cutlass.Constexpr,
    iterations: cutlass.Constexpr[int],
):
    """``comb`` of the owned tokens of a batch of passes from ``number`` on, those that there are, from ``logits`` (16,
    owned tokens, buffers): four lanes a token."""
    end = cutlass.min(number + batch(tiling), passes.count)
    for waited in cutlass.range(number, end, unroll=1):
        cute.arch.mbarrier_wait(barriers.logits + waited % buffers(tiling), waited // buffers(tiling) % 2)
    each = passes.lane // STREAMS
    mine, owned = number + each // tiling.owned, each % tiling.owned
    there = mine < end
    mine = cutlass.min(mine, end - 1)
    row = sinkhorn(logits[None, owned, mine % buffers(tiling)], passes.lane, eps, iterations)
    for taken in cutlass.range(number, end, unroll=1):
        arrive(barriers.solved + taken % buffers(tiling), passes.lane)
    token = (passes.first + mine * passes.step) * tiling.tokens + owned * tiling.cluster + passes.rank
    if there and token < passes.tokens:
        cute.autovec_copy(row, comb[Int64(token), passes.lane % STREAMS, None])


@cute.jit
def load_role(passes, copy, barriers, tiling: cutlass.Constexpr):
    """A warp that loads all passes."""
    slot, phase = Int32(0), Int32(0)
    for number in cutlass.range(passes.count, unroll=1):
        load_pass(number, slot, phase, passes, copy, barriers, tiling)
        slot, phase = next_position(slot, phase, tiling.stages)


@cute.jit
def send_role(partials, received, passes, barriers, tiling: cutlass.Constexpr):
    """A warp that sends the partial outputs of all passes."""
    slot, phase = Int32(0), Int32(0)
    for number in cutlass.range(passes.count, unroll=1):
        send_pass(number, slot, partials, received, passes, barriers, tiling)
        slot, phase = next_position(slot, phase, tiling.stages)


@cute.jit
def own_role(
    received,
    weights,
    logits,
    post,
    comb,
    parameters,
    norm_eps: Float32,
    eps: Float32,
    copy,
    passes,
    barriers,
    tiling: cutlass.Constexpr,
    iterations: cutlass.Constexpr[int],
):
    """A warp that owns; with ``copy`` (see :func:`load_pass`) it also loads what follows into a stage that is left, and
    solves for ``comb``, a batch of passes at a time. It has loaded the first ``stages`` passes before."""
    slot, phase = Int32(0), Int32(0)
    for number in cutlass.range(passes.count, unroll=1):
        own_pass(
            number, slot, phase, received, weights, logits, post, parameters, norm_eps, eps, passes, barriers, tiling
        )
        if cutlass.const_expr(copy is not None):
            if number + tiling.stages < passes.count:
                load_pass(number + tiling.stages, slot, phase ^ 1, passes, copy, barriers, tiling)
            if cutlass.const_expr(comb is not None):  # noqa: SIM102 (decided when compiling)
                if number % batch(tiling) == batch(tiling) - 1 or number + 1 == passes.count:
                    start = number // batch(tiling) * batch(tiling)
                    solve_passes(start, logits, comb, eps, passes, barriers, tiling, iterations)
        slot, phase = next_position(slot, phase, tiling.stages)


@cute.jit
def solve_role(
    logits, comb, eps: Float32, passes, barriers, tiling: cutlass.Constexpr, iterations: cutlass.Constexpr[int]
):
    """A warp that solves for comb, several passes at a time."""
    for number in cutlass.range(0, passes.count, batch(tiling), unroll=1):
        solve_passes(number, logits, comb, eps, passes, barriers, tiling, iterations)
