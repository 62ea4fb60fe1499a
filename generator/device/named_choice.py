"""A table's experts of a token: their logits out of the accumulators of a gate's product, and their weights.

The logits of the named experts go through shared memory to the lanes that put a token together: a group of lanes a
token, a lane an expert. Where several CTAs have parts of the columns, these go through global memory to the one that
is the last to arrive, which adds them in the order of the columns.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.expert_choice import affinity
from dsv4.generator.device.inline_asm import reading_asm


def lanes_per_token(k: int) -> int:
    """Lanes of a group: the power of two from ``k`` on, four at least."""
    return max(4, 1 << (k - 1).bit_length())


class Pushed(NamedTuple):
    """Memory of half of a CTA's ``rows`` through which named logits leave the registers, rows and quarters outermost.

    ``pairs``: float32 ``(2, k, 4, rows)``; ``masks``: Int32 ``(words, 4, rows)``, which blocks of eight experts a
    quarter pushed.
    """

    pairs: cute.Tensor
    masks: cute.Tensor


def mask_words(experts: int) -> int:
    """Words with a bit for each block of eight experts."""
    return -(-experts // 256)


@dsl_user_op
def _push(address: Int32, mask: Uint32, bit: int, a: Float32, b: Float32, *, loc=None, ip=None) -> Int32:
    """Store the pair at ``address`` (shared memory) if ``mask`` has ``bit``; the address behind what is stored."""
    operands = [value.ir_value(loc=loc, ip=ip) for value in (Int32(address), Uint32(mask), Float32(a), Float32(b))]
    text = (
        "{\n\t.reg .pred wanted;\n\t.reg .b32 own;\n\t"
        f"and.b32 own, $2, {1 << bit};\n\tsetp.ne.b32 wanted, own, 0;\n\t"
        "@wanted st.shared.v2.f32 [$0], {$3, $4};\n\t@wanted add.s32 $0, $0, 8;\n\t}"
    )
    return Int32(reading_asm(T.i32(), operands, text, "=r,0,r,f,f", loc, ip))


@cute.jit
def tell_logits(sums, named, row: Int32, lane: Int32, pushed, logits, ids, k: cutlass.Constexpr[int]):
    """A warp: logits and numbers of the experts ``named`` (Int32, ``(2, k)``) of a thread's rows, ``row`` and 8 below.

    They are put into ``logits`` (float32) and ``ids`` (Int32), ``(rows, lanes)`` in shared memory; a warp's 16 rows are
    its own. ``sums``: an accumulator ``((2, 2, N/8), 1, 1)`` for each part of the experts. Registers have no index that
    is known only at run time: a thread goes through all its pairs of columns, and stores one after another those of
    blocks that its row's experts lie in. How many wanted blocks come before says where an expert's pair is.
    """
    quarter, group = lane & 3, lanes_per_token(k)
    first_row = row - lane // 4
    own_place = first_row // 2 + lane // 4  # of eight rows at a time
    blocks = [(part, block) for part in range(len(sums)) for block in range(sums[part].shape[0][2])]
    n_own = cutlass.min(lane % group, k - 1)
    for half in cutlass.range_constexpr(2):
        masks = [Uint32(0) for _ in range(-(-len(blocks) // 32))]
        for n in cutlass.range_constexpr(k):
            expert = named[half, n]
            if n % 4 == quarter:
                ids[row + 8 * half, n] = expert
            own = Uint32(1) if (expert >> 1) & 3 == quarter else Uint32(0)
            for word in cutlass.range_constexpr(len(masks)):
                inside = own if expert >> 8 == word else Uint32(0)
                masks[word] = masks[word] | inside << Uint32((expert >> 3) & 31)
        for word in cutlass.range_constexpr(len(masks)):
            pushed.masks[word, quarter, own_place] = Int32(masks[word])
        target = pushed.pairs.iterator + cute.crd2idx((0, 0, quarter, own_place), pushed.pairs.layout)
        address = target.toint()
        for number in cutlass.range_constexpr(len(blocks)):
            part, block = blocks[number]
            a, b = sums[part][(0, half, block), 0, 0], sums[part][(1, half, block), 0, 0]
            address = _push(address, masks[number // 32], number % 32, a, b)
        cute.arch.sync_warp()
        for step in cutlass.range_constexpr(8 * group // 32):
            place = step * (32 // group) + lane // group
            expert = ids[first_row + 8 * half + place, n_own]
            before = (Uint32(1) << Uint32((expert >> 3) & 31)) - Uint32(1)
            behind = Int32(0)
            for word in cutlass.range_constexpr(len(masks)):
                mask = Uint32(pushed.masks[word, (expert >> 1) & 3, first_row // 2 + place])
                below = mask & before if expert >> 8 == word else (mask if expert >> 8 > word else Uint32(0))
                behind = behind + Int32(cute.arch.popc(below))
            logits[first_row + 8 * half + place, n_own] = pushed.pairs[
                expert & 1, behind, (expert >> 1) & 3, first_row // 2 + place
            ]
        cute.arch.sync_warp()


@cute.jit
def store_part(logits, part, first_row: Int32, lane: Int32, k: cutlass.Constexpr[int]):
    """A warp: its 16 rows of ``logits`` into ``part`` (float32 ``(rows, lanes)``, global memory)."""
    group = lanes_per_token(k)
    own = lane % group
    if own < k:
        for step in cutlass.range_constexpr(16 * group // 32):
            row = first_row + step * (32 // group) + lane // group
            part[row, own] = logits[row, own]


@cute.jit
def add_parts(
    parts, first: Int32, count: Int32, later: Int32, logits, first_row: Int32, lane: Int32, k: cutlass.Constexpr[int]
):
    """A warp: its 16 rows of ``logits`` become the sums of ``count`` ≥ 2 parts, added in order.

    ``parts``: ``(2, shares, rows, lanes)``, for a share the tile that it began in and, of its last, one more; the first
    of these parts is the one of share ``first`` at ``later``, the others are beginnings of shares.
    """
    group = lanes_per_token(k)
    own = cutlass.min(lane % group, k - 1)
    steps = 16 * group // 32
    sums = [Float32(0.0) for _ in range(steps)]
    for step in cutlass.range_constexpr(steps):
        sums[step] = parts[later, first, first_row + step * (32 // group) + lane // group, own]
    for i in cutlass.range(1, count, unroll=4):
        for step in cutlass.range_constexpr(steps):
            sums[step] = sums[step] + parts[0, first + i, first_row + step * (32 // group) + lane // group, own]
    for step in cutlass.range_constexpr(steps):
        logits[first_row + step * (32 // group) + lane // group, own] = sums[step]


@cute.jit
def write_weights(
    logits,
    ids,
    first_row: Int32,
    first_token: Int32,
    experts: cute.Tensor,
    weights: cute.Tensor,
    factor: Float32,
    lane: Int32,
    k: cutlass.Constexpr[int],
):
    """A warp: experts and weights of the tokens ``first_token`` + its 16 rows; those beyond the last are left out."""
    group = lanes_per_token(k)
    own = lane % group
    n = cutlass.min(own, k - 1)
    first_lane = lane - own
    for step in cutlass.range_constexpr(16 * group // 32):
        row = first_row + step * (32 // group) + lane // group
        value = affinity(logits[row, n])
        total = cute.arch.shuffle_sync(value, first_lane)
        for i in cutlass.range_constexpr(1, k):
            total = total + cute.arch.shuffle_sync(value, first_lane + i)
        token = first_token + row
        if token < experts.shape[0] and own < k:
            experts[token, own] = ids[row, own]
            weights[token, own] = value * cute.arch.rcp_approx(total) * factor
