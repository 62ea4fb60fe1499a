"""The softmax of a decoding attention on sm_100 for few heads: over the rows of Sᵀ, which are keys.

``tcgen05.ld.16x256b`` hands Sᵀ to a warpgroup as an accumulator of wgmma lies in it: a thread has two keys and N/4
heads. So a head's maximum goes through eight lanes of each warp and the four warps, as on Hopper
(``sm90_few_heads``), and P is stored by the same transposing stores.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device import sm90_ring, sm90_wgmma
from dsv4.generator.device.kv_dequant import ROW_BYTES
from dsv4.generator.device.sm90_few_heads import SCORE_BARRIER, head_of, tell_maxima
from dsv4.generator.device.sm100_half_mma import HALF_LANE
from dsv4.generator.device.sm100_softmax import finite_or_zero
from dsv4.generator.device.sm100_sparse_decode import WARPGROUP
from dsv4.generator.device.sm100_tmem import fence_after_wait, fence_before_arrive
from dsv4.generator.device.transposed_store import store_transposed

LOAD_COLUMNS = 8
"""Of tensor memory, in one repetition of 16x256b: four registers of a thread."""
ALL_KEYS = 0xFFFF
"""The word of a warp of whose 16 keys all count."""


def load_pieces(columns: int) -> list[tuple[int, int]]:
    """First column and repetitions of each load of ``columns`` columns: a load has a power of two of them."""
    pieces, first = [], 0
    while first < columns:
        count = 1
        while first + 2 * count * LOAD_COLUMNS <= columns:
            count *= 2
        pieces.append((first, count))
        first += count * LOAD_COLUMNS
    return pieces


@dsl_user_op
def _load_words(address: Int32, columns: int, *, loc=None, ip=None) -> tuple:
    count = columns // 2
    text = ""
    for first, repetitions in load_pieces(columns):
        registers = ", ".join(f"${first // 2 + i}" for i in range(4 * repetitions))
        text += f"tcgen05.ld.sync.aligned.16x256b.x{repetitions}.b32 {{{registers}}}, [${count} + {first}];\n\t"
    text += "tcgen05.wait::ld.sync.aligned;"
    result = ir.Type.parse(f"!llvm.struct<({', '.join(['i32'] * count)})>")
    found = llvm.inline_asm(
        result, [Int32(address).ir_value(loc=loc, ip=ip)], text, "=&r," * count + "r,~{memory}", has_side_effects=True,
        is_align_stack=False, asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip
    element = ir.IntegerType.get_signless(32)
    words = [llvm.extractvalue(element, found, [i], loc=loc, ip=ip) for i in range(count)]
    return tuple(Float32(llvm.bitcast(Float32.mlir_type, word, loc=loc, ip=ip)) for word in words)


@cute.jit
def load_scores(address: Int32, scores: cute.Tensor) -> None:
    """The thread's part of a matrix of 64 x N to ``scores``, an accumulator fragment (``sm90_wgmma.accumulator``).

    ``address`` has the lane of the warp's first row. Collective over the warp, and waited for.
    """
    words = _load_words(address, cutlass.const_expr(2 * cute.size(scores)))
    for i in cutlass.range_constexpr(cute.size(scores)):
        scores[i] = words[i]


@cute.jit
def hide_absent(rows: cute.Tensor, word: Uint32, thread: Int32):
    """Scores of keys that do not count become −∞. ``rows`` (2, N/4): keys lane/4 and lane/4 + 8 of the warp's 16, of
    which bit i of ``word`` says whether key i counts."""
    if word != Uint32(ALL_KEYS):
        own = word >> Uint32(thread % 32 // 4)
        for half in cutlass.range_constexpr(2):
            counts = (own >> Uint32(8 * half)) & Uint32(1)
            for column in cutlass.range_constexpr(cute.size(rows, mode=[1])):
                rows[half, column] = rows[half, column] if counts == Uint32(1) else -Float32.inf


@cute.jit
def exponentiate(
    rows: cute.Tensor,
    maxima: cute.Tensor,
    head_max: cute.Tensor,
    head_sum: cute.Tensor,
    factors: cute.Tensor,
    scale_log2: Float32,
    thread: Int32,
    rescale_above: cutlass.Constexpr[int],
):
    """rows ← p; m and this thread's part of l go on, ``factors`` ← what the heads' O has to be multiplied by.

    m lags behind the largest score until p would be above 2^``rescale_above``: mostly the factors are 1. A head without
    a key keeps m = −∞, l = 0.
    """
    for column in cutlass.range_constexpr(cute.size(head_max)):
        head, before = head_of(column, thread), head_max[column]
        first = cute.arch.fmax(maxima[head, 0], maxima[head, 1])
        second = cute.arch.fmax(maxima[head, 2], maxima[head, 3])
        highest = cute.arch.fmax(before, cute.arch.fmax(first, second))
        is_raised = (highest - before) * scale_log2 > Float32(rescale_above)  # not so if both are −∞
        after = highest if is_raised else before
        shift = finite_or_zero(after) * scale_log2
        raised = cute.math.exp2(before * scale_log2 - shift, fastmath=True)
        factor = raised if is_raised else Float32(1.0)
        x0, x1 = cute.arch.fma_packed_f32x2(
            (rows[0, column], rows[1, column]), (scale_log2, scale_log2), (-shift, -shift)
        )
        rows[0, column] = cute.math.exp2(x0, fastmath=True)
        rows[1, column] = cute.math.exp2(x1, fastmath=True)
        head_max[column], factors[column] = after, factor
        head_sum[column] = head_sum[column] * factor + (rows[0, column] + rows[1, column])


@cute.jit
def softmax_columns(
    tiles: Int32,
    scale_log2: Float32,
    scores: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    maxima: cute.Tensor,
    head_max: cute.Tensor,
    head_sum: cute.Tensor,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    rescale_above: cutlass.Constexpr[int],
):
    """P and the factors of O of ``tiles`` tiles into the ring; m (unscaled) and this thread's part of l.

    ``scores``: address of Sᵀ of the first slot. ``maxima`` (N, 4, 2) float32 in shared memory: of each warp, of a tile
    and of the one before. ``head_max`` and ``head_sum``: registers, N/4 each. ``scale_log2`` is above 0.
    """
    heads = cutlass.const_expr(4 * cute.size(head_max))
    warp = thread >> 5
    first_score = scores + warp * (2 * HALF_LANE)
    p_address = ring.p.iterator.toint()
    slot, phase, turn = Int32(0), Int32(0), Int32(0)
    factors = cute.make_rmem_tensor((heads // 4,), Float32)
    head_max.fill(-Float32.inf)
    head_sum.fill(0.0)
    for _ in cutlass.range(tiles, unroll=1):
        # The keys too: their flags are read here, and their slot's P and factors are free since they were filled.
        cute.arch.mbarrier_wait(barriers.keys_full + slot, phase)
        cute.arch.mbarrier_wait(barriers.scores_full + slot, phase)
        fence_after_wait()
        fragment = sm90_wgmma.accumulator(heads)
        load_scores(first_score + slot * HALF_LANE, fragment)
        rows = sm90_wgmma.rows_of(fragment)
        hide_absent(rows, ring.is_key[warp, slot], thread)
        tell_maxima(rows, maxima[None, None, turn], thread)
        cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=WARPGROUP)
        exponentiate(
            *(rows, maxima[None, None, turn], head_max, head_sum, factors, scale_log2, thread, rescale_above),
        )
        if thread < 4:
            for column in cutlass.range_constexpr(heads // 4):
                ring.factors[head_of(column, thread), slot] = factors[column]
        cute.arch.sync_warp()
        sm90_ring.release(barriers.factors_full, slot)
        store_transposed(fragment, p_address + slot * (heads * ROW_BYTES), thread)
        cute.arch.fence_view_async_shared()
        fence_before_arrive()
        cute.arch.mbarrier_arrive(barriers.weights_full + slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        turn = turn ^ 1
