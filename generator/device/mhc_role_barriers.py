"""The mbarriers of an mHC kernel whose warps have roles of their own, and the way of a pass from role to role.

    full      load warp -> project, mix        a stage of streams has arrived                 (bytes, per stage)
    empty     mix warps -> load warp           everyone here is done with a stage
    summed    project warps -> send warp       each warp's partial outputs of a pass
    taken     send warp -> project warps       they have been read
    received  send warps of all CTAs -> owner  partial outputs of the tokens that it owns     (bytes, per stage)
    weights   owners of all CTAs -> mix        the stream weights of a pass                   (bytes, per stage)
    squares   mix warps of all CTAs -> mix     everyone's sums of squares                     (bytes, stages + 2)
    logits    owner -> Sinkhorn warp, and back (``solved``)                                   (buffers)

What one CTA sends to another needs no way back that says that it was read, because what is sent later follows from it.
With S stages, a pass i + S is projected in a CTA only after its mix warps have released the stage of pass i. So its
partial outputs, which arrive with a release, tell the owner that the weights of pass i have been read there; the
weights of pass i + S, which come from every owner, tell that ``received`` of pass i has been read everywhere. A mix
warp releases the stage of pass i after it has read the squares of pass i − 2, so S + 2 buffers of squares do.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32


class Barriers(NamedTuple):
    """Pointers to the first mbarrier of each kind."""

    full: cute.Pointer
    empty: cute.Pointer
    received: cute.Pointer
    weights: cute.Pointer
    squares: cute.Pointer
    summed: cute.Pointer
    taken: cute.Pointer
    logits: cute.Pointer
    solved: cute.Pointer


def batch(tiling) -> int:
    """Passes that are solved for comb at a time, four lanes a token: a warp takes as long for them as for one."""
    return 8 // tiling.owned


def buffers(tiling) -> int:
    """Of the logits within a CTA."""
    return 2 * batch(tiling)


def square_buffers(stages: int) -> int:
    """Buffers of everyone's squares: see above."""
    return stages + 2


def _sizes(tiling) -> list[int]:
    return [tiling.stages] * 4 + [square_buffers(tiling.stages), 1, 1, buffers(tiling), buffers(tiling)]


def count(tiling) -> int:
    """mbarriers in all."""
    return sum(_sizes(tiling))


def place(first, tiling) -> Barriers:
    """The barriers one after the other from ``first`` on."""
    sizes = _sizes(tiling)
    return Barriers(*[first + sum(sizes[:i]) for i in range(len(sizes))])


@cute.jit
def init(barriers, tiling: cutlass.Constexpr):
    """One thread: initialises all barriers; ``mbarrier_init_fence`` and a cluster barrier have to follow."""
    for slot in cutlass.range_constexpr(tiling.stages):
        cute.arch.mbarrier_init(barriers.full + slot, 1)
        cute.arch.mbarrier_init(barriers.empty + slot, tiling.role_warps)
        cute.arch.mbarrier_init(barriers.received + slot, tiling.cluster)
        cute.arch.mbarrier_init(barriers.weights + slot, tiling.cluster)
    for slot in cutlass.range_constexpr(square_buffers(tiling.stages)):
        cute.arch.mbarrier_init(barriers.squares + slot, 1)
    cute.arch.mbarrier_init(barriers.summed, tiling.role_warps)
    cute.arch.mbarrier_init(barriers.taken, 1)
    for slot in cutlass.range_constexpr(buffers(tiling)):
        cute.arch.mbarrier_init(barriers.logits + slot, 1)
        cute.arch.mbarrier_init(barriers.solved + slot, 1)


@cute.jit
def announce(barrier: cute.Pointer, count_bytes: cutlass.Constexpr[int], lane: Int32, tiling: cutlass.Constexpr):
    """One warp: an arrival at ``barrier`` of every CTA, which waits for ``count_bytes`` more; it releases all that the
    warp has done and learnt."""
    cute.arch.sync_warp()
    if lane < tiling.cluster:
        cute.arch.mbarrier_arrive_and_expect_tx(barrier, count_bytes, peer_cta_rank_in_cluster=lane)


@cute.jit
def arrive(barrier: cute.Pointer, lane: Int32):
    """One warp: one arrival here, after all that the warp has read and written."""
    cute.arch.sync_warp()
    if lane == 0:
        cute.arch.mbarrier_arrive(barrier)
