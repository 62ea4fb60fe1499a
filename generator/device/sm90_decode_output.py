"""The end of a decoding attention on Hopper: O normalised and stored, by one CTA or by the CTAs that shared its keys.

With c = softmax_scale · log2(e), and m, l of the parts of the keys (dsv4-reference §7.2, the sink once):

    M = max m_i    L = Σ l_i · 2^(c·(m_i − M))    O = Σ O_i · 2^(c·(m_i − M)) / (L + 2^(log2(e)·sink − c·M))
    lse = ln L + softmax_scale · M

The CTAs of a cluster tell one another m and l, scale what they have, and send each the columns that it is to add up and
store: float32, always in the order of the parts, so that the result is the same at every run.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from dsv4.generator.device import sm90_mask, sm90_wgmma, softmax
from dsv4.generator.device.bulk_rows import load_shared
from dsv4.generator.device.cluster_sum import shift_to_cta, store_pair, store_to_cta
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, ROW_BYTES
from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.sm90_sparse_decode import (
    PRODUCT_COLUMNS,
    ROWS,
    VALUE_COLUMNS,
)

SPLITS_MAX = 8
"""CTAs of a cluster; with more, a group of eight columns would not have a place of its own in each row of a part."""


@cute.jit
def log2_of(parts: Int32) -> Int32:
    """The logarithm of a power of two."""
    return Int32(cute.arch.popc(parts - 1))


@cute.jit
def whole_sums(row_sum: cute.Tensor):
    """Each row's l over the four threads that share it."""
    for half in cutlass.range_constexpr(2):
        total = row_sum[half]
        total = total + cute.arch.shuffle_sync_bfly(total, offset=1)
        row_sum[half] = total + cute.arch.shuffle_sync_bfly(total, offset=2)


@cute.jit
def cta_of(part: Int32, half) -> Int32:
    """The rank in the cluster of the CTA that has ``part`` of the keys; of two that share them, that of ``half``.

    ``half`` is None, or 0 or 1 (Int32) in a cluster of pairs (``sm90_sparse_pair``).
    """
    rank = part
    if cutlass.const_expr(half is not None):
        rank = 2 * part + half
    return rank


@cute.jit
def tell_statistics(
    row_max: cute.Tensor,
    row_sum: cute.Tensor,
    statistics: cute.Tensor,
    rank: Int32,
    thread: Int32,
    parts: Int32,
    half=None,
):
    """Warpgroup of S: m and l (whole) of its rows into ``statistics`` (64, 2, parts) of every CTA with these rows.

    ``rank``: of the part of the keys that this CTA has. ``half``: see :func:`cta_of`.
    """
    if thread & 3 == 0:
        row = sm90_mask.thread_row(thread)
        for side in cutlass.range_constexpr(2):
            for to in cutlass.range(parts, unroll=1):
                for kind, values in enumerate((row_max, row_sum)):
                    place = statistics.iterator + statistics.layout((row + 8 * side, kind, rank))
                    store_to_cta(place, cta_of(to, half), values[side])


@cute.jit
def largest_of(statistics: cute.Tensor, row: Int32, parts: Int32) -> Float32:
    """M of a row, −∞ without keys."""
    top = statistics[row, 0, 0]
    for part in cutlass.range(1, parts, unroll=1):
        top = cute.arch.fmax(top, statistics[row, 0, part])
    return top


@cute.jit
def denominator(
    statistics: cute.Tensor,
    row: Int32,
    scale_log2: Float32,
    sink,
    parts: Int32,
) -> tuple[Float32, Float32, Float32]:
    """Of a row: the shift c·M (0 for a row without keys), 1 / (L + sink's part) (0 without keys), and L.

    ``sink`` is the row's float32 logit, or None.
    """
    top = largest_of(statistics, row, parts)
    shift = (Float32(0.0) if top == -Float32.inf else top) * scale_log2
    total = Float32(0.0)
    for part in cutlass.range(parts, unroll=1):
        factor = cute.math.exp2(statistics[row, 0, part] * scale_log2 - shift, fastmath=True)
        total = total + statistics[row, 1, part] * factor
    below = total
    if cutlass.const_expr(sink is not None):
        below = total + cute.math.exp2(sink * softmax.LOG2_E - shift, fastmath=True)
    inverse = Float32(0.0) if total == Float32(0.0) else cute.arch.rcp_approx(below)
    return shift, inverse, total


@cute.jit
def store_lse(
    lse: cute.Tensor,
    max_logits,
    statistics: cute.Tensor,
    row: Int32,
    heads: Int32,
    scale_log2: Float32,
    empty_lse: Float32,
    parts: Int32,
):
    """The natural log-sum-exp of one row, without the sink; ``empty_lse`` without keys. ``lse`` is (64,).

    ``max_logits`` (64,), or None: the row's largest scaled logit, −∞ without keys.
    """
    if row < heads:
        if cutlass.const_expr(max_logits is not None):
            max_logits[row] = largest_of(statistics, row, parts) * (scale_log2 * softmax.LN_2)
        shift, _, total = denominator(statistics, row, scale_log2, None, parts)
        value = (shift + cute.math.log2(total, fastmath=True)) * softmax.LN_2
        lse[row] = empty_lse if total == Float32(0.0) else value


@cute.jit
def normalise(
    accs_o: cutlass.Constexpr,
    statistics: cute.Tensor,
    sink,
    heads: Int32,
    scale_log2: Float32,
    rank: Int32,
    thread: Int32,
    parts: Int32,
):
    """Warpgroup of O: its part's share of the result, O_i · 2^(c·(m_i − M)) / (L + sink's part).

    ``sink`` is (64,) float32, of which ``heads`` may be read, or None.
    """
    factor = cute.make_rmem_tensor((2,), Float32)
    first = sm90_mask.thread_row(thread)
    for half in cutlass.range_constexpr(2):
        row = first + 8 * half
        own_sink = None
        if cutlass.const_expr(sink is not None):
            own_sink = sink[cutlass.min(row, heads - 1)]
        shift, inverse, _ = denominator(statistics, row, scale_log2, own_sink, parts)
        own_max = statistics[row, 0, rank]
        factor[half] = cute.math.exp2(own_max * scale_log2 - shift, fastmath=True) * inverse
    for acc in accs_o:
        softmax.scale_rows(sm90_wgmma.rows_of(acc), factor)


@cute.jit
def store_alone(
    accs_o: cutlass.Constexpr, keys: cute.Tensor, out: cute.Tensor, heads: Int32, part: Int32, thread: Int32
):
    """Warpgroup of O: its 256 columns as bf16 through its part of the first tile of ``keys``, which only it still owns.

    ``out`` is [64 or fewer heads, 512]; rows from ``heads`` on are left out. A warp reads back its own rows only.
    """
    mma = sm90_wgmma.tiled_mma_ss(PRODUCT_COLUMNS, cute.nvgpu.OperandMajorMode.MN)
    for i, acc in enumerate(accs_o):
        stage = cute.local_tile(keys[None, None, 0], (ROWS, PRODUCT_COLUMNS), (0, part * len(accs_o) + i))
        sm90_wgmma.store_accumulator(acc, mma, stage, thread)
    cute.arch.sync_warp()
    warp, lane = thread >> 5, thread & 31
    base = keys.iterator.toint() + part * (VALUE_COLUMNS // 64 * BLOCK_BYTES)
    registers = cute.make_rmem_tensor((4,), Uint32)
    for turn in cutlass.range_constexpr(16):
        row = warp * 16 + turn
        if row < heads:
            piece = (lane & 7) ^ (turn & 7)  # the warp's rows begin at a multiple of 8
            load_shared(base + (lane >> 3) * BLOCK_BYTES + row * ROW_BYTES + piece * 16, registers)
            column = Int64(part * VALUE_COLUMNS + lane * 8)
            store_at((out.iterator + row * out.stride[0]).toint() + 2 * column, registers)


@cute.jit
def send_columns(
    accs_o: cutlass.Constexpr,
    parts_o: Int32,
    rank: Int32,
    part: Int32,
    thread: Int32,
    parts: cutlass.Constexpr[int],
    half=None,
):
    """Warpgroup of O: every column (normalised, float32) to the CTA that stores it, into its block number ``rank``.

    ``parts_o`` is the address of [parts][64][512 / parts] float32, in which eight numbers at a time stand at (their
    number ^ row mod 8): so the rows of a warp go to different banks. ``half``: see :func:`cta_of`.
    """
    groups_log2 = 6 - log2_of(parts)  # groups of eight columns that a CTA stores: eight at least
    first_group = part * (VALUE_COLUMNS // 8)
    shifts = [
        shift_to_cta(parts_o, cta_of((first_group + 8 * eighth) >> groups_log2, half))
        for eighth in range(VALUE_COLUMNS // 64)
    ]
    rows = [sm90_wgmma.rows_of(acc) for acc in accs_o]
    first = sm90_mask.thread_row(thread)
    for side in cutlass.range_constexpr(2):
        row = first + 8 * side
        start = parts_o + ((rank * ROWS + row) << (groups_log2 + 5)) + 8 * (thread & 3)
        for block in cutlass.range_constexpr(VALUE_COLUMNS // 8):
            group = (first_group + block) & ((1 << groups_log2) - 1)
            place = start + (group ^ (row & 7)) * 32 + shifts[block // 8]
            own, pair = rows[8 * block // PRODUCT_COLUMNS], 2 * (block % (PRODUCT_COLUMNS // 8))
            store_pair(place, own[side, pair], own[side, pair + 1])


@cute.jit
def add_up(
    out: cute.Tensor,
    parts_o: Int32,
    heads: Int32,
    rank: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    parts: Int32,
):
    """All threads of a CTA: its columns of the result from what the CTAs have sent, as bf16 to ``out`` [heads, 512]."""
    groups_log2 = 6 - log2_of(parts)
    registers = cute.make_rmem_tensor((4, 2), Uint32)
    values = cute.recast_tensor(registers, Float32)
    total = cute.make_rmem_tensor((8,), Float32)
    for number in cutlass.range(thread, heads << groups_log2, threads, unroll=1):
        row, group = number >> groups_log2, number & ((1 << groups_log2) - 1)
        place = parts_o + (row << (groups_log2 + 5)) + (group ^ (row & 7)) * 32
        total.fill(0.0)
        for source in cutlass.range(parts, unroll=1):
            for half in cutlass.range_constexpr(2):
                load_shared(place + ((source * ROWS) << (groups_log2 + 5)) + 16 * half, registers[None, half])
            for i in cutlass.range_constexpr(8):
                total[i] = total[i] + values[i]
        column = Int64(((rank << groups_log2) + group) * 8)
        store_at((out.iterator + row * out.stride[0]).toint() + 2 * column, to_bf16(total))
