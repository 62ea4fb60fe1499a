"""The project warps of an mHC kernel with roles: staged streams times weights in registers.

A stage is swizzled over 128 bytes: for each stream blocks of 64 columns, in which a row is a token and the 16-byte
vector c of row r lies at c xor (r mod 8). ``ldmatrix`` reads operands of ``mma.m16n8k16`` from it as they are: 16
tokens and 16 columns, of which lane ``l`` gets columns ``2 (l % 4)`` and one more, and the same behind the first eight.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import warp as warp_mma
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device import mhc_project
from dsv4.generator.device.inline_asm import reading_asm
from dsv4.generator.device.mhc_role_barriers import arrive
from dsv4.generator.device.mhc_tiling import QUAD, STREAMS, TERMS, TILE_TOKENS
from dsv4.generator.device.mhc_weights import load_weights, spare_of_thread, term_of
from dsv4.generator.device.sm90_ring import next_position

SQUARE_CHAIN = 2
"""Groups of columns times streams whose squares one accumulator adds up: a product's result is cut, not rounded, so
chains stay short."""
BLOCK_COLUMNS, ROW_BYTES, VECTOR_BYTES = 64, 128, 16


class Stage(NamedTuple):
    """Where one thread reads in stage 0 the first 16 columns of the first stream; the n-th 16 lie at that xor 32 n."""

    first: Int32
    stream_bytes: int
    stage_bytes: int


@cute.jit
def stage_of_thread(staged: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr):
    """For a project warp of ``tiling.groups`` (1 or 2) times 32 columns: where this lane's row of its matrix of 8
    tokens and 8 columns lies."""
    lane, group = thread % 32, thread // 32 * tiling.groups
    token, vector = lane % 16, group % 2 * 4 + lane // 16
    base = staged.iterator.toint() + group // 2 * (tiling.tokens * ROW_BYTES) + token * ROW_BYTES
    first = Int32(base + (vector ^ (token % 8)) * VECTOR_BYTES)
    stream_bytes = tiling.tokens * tiling.slice_columns * 2
    return Stage(first, stream_bytes, STREAMS * stream_bytes)


@dsl_user_op
def load_matrices(address: Int32, *, loc=None, ip=None) -> tuple[Uint32, Uint32, Uint32, Uint32]:
    """Four matrices of 8 × 8 bf16 from the 32 lanes' rows of shared memory, a pair of each in every lane."""
    four = ir.Type.parse("!llvm.struct<(i32, i32, i32, i32)>")
    text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
    result = reading_asm(four, [Int32(address).ir_value(loc=loc, ip=ip)], text, "=r,=r,=r,=r,r", loc, ip)
    first, second, third, fourth = (Uint32(llvm.extractvalue(T.i32(), result, [i], loc=loc, ip=ip)) for i in range(4))
    return first, second, third, fourth


@cute.jit
def load_groups(fn: cute.Tensor, spare_weights, rank: Int32, thread: Int32, tiling: cutlass.Constexpr):
    """The weights of each of the warp's groups of 32 columns: a list of (registers, codes, spare), as
    ``mhc_weights.load_weights`` has them."""
    groups = []
    for group in cutlass.range_constexpr(tiling.groups):
        member = (thread // 32 * tiling.groups + group) * 32 + thread % 32
        spare = None
        if cutlass.const_expr(tiling.spare_terms > 0):
            spare = spare_of_thread(spare_weights, member, tiling)
        kept, codes = load_weights(fn, spare, rank, member, tiling, 2)
        groups.append((kept, codes, spare))
    return groups


@cute.jit
def project_tile(stage, slot: Int32, groups, lane: Int32, tile: cutlass.Constexpr[int], tiling: cutlass.Constexpr):
    """The outputs of 16 tokens over this warp's columns, ``(4, output tiles)`` as ``mhc_project.project_tile``, and
    two Σ x², of tokens ``g`` and ``g + 8``, right in the lane with ``g = lane // 4`` and ``lane % 4 = g // 2``.

    The squares are products, too: of the tile's tokens with those of its upper and lower half. What is wanted stands on
    the diagonals.
    """
    atom = cute.make_mma_atom(warp_mma.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))
    tiles = tiling.output_tiles
    sums = cute.make_rmem_tensor((4, tiles), Float32)
    sums.fill(0.0)
    squares = [Float32(0.0), Float32(0.0)]
    odd = lane // 4 % 2 == 1
    grams = cute.make_rmem_tensor((4, 2), Float32)
    chain = SQUARE_CHAIN // tiling.groups
    inside = slot * stage.stage_bytes + stage.first
    b = cute.make_rmem_tensor((2,), Uint32)
    b_operand = cute.make_tensor(cute.recast_tensor(b, BFloat16).iterator, cute.make_layout(((2, 2),)))
    for visit in cutlass.range_constexpr(STREAMS * tiling.groups):
        group, j = visit // STREAMS, visit % STREAMS
        kept, codes, spare = groups[group]
        parts, pairs_of = [], []
        for step in cutlass.range_constexpr(mhc_project.STEPS):
            offset = j * stage.stream_bytes + tile * TILE_TOKENS * ROW_BYTES
            part = group * mhc_project.STEPS + step
            words = load_matrices((inside ^ (2 * VECTOR_BYTES * part)) + offset)
            a = cute.make_rmem_tensor((4,), Uint32)
            a[0], a[1], a[2], a[3] = words[0], words[1], words[2], words[3]
            a_operand = cute.make_tensor(cute.recast_tensor(a, BFloat16).iterator, cute.make_layout(((2, 2, 2),)))
            parts.append(a_operand)
            pairs_of.append(words)
        for half in cutlass.range_constexpr(2):
            gram = grams[None, half]
            if cutlass.const_expr(visit % chain == 0):
                gram.fill(0.0)
            for step in cutlass.range_constexpr(mhc_project.STEPS):
                b[0], b[1] = pairs_of[step][half], pairs_of[step][2 + half]
                cute.mma_atom_call(atom, gram, parts[step], b_operand, gram)
            if cutlass.const_expr(visit % chain == chain - 1):
                squares[half] = squares[half] + (gram[2 * half + 1] if odd else gram[2 * half])
        for term in cutlass.range_constexpr(TERMS):
            for n in cutlass.range_constexpr(tiles):
                pairs = term_of(kept, codes, spare, n, j, term, tiling)
                total = sums[None, n]
                for step in cutlass.range_constexpr(mhc_project.STEPS):
                    b[0], b[1] = pairs[2 * step], pairs[2 * step + 1]
                    cute.mma_atom_call(atom, total, parts[step], b_operand, total)
    return sums, squares


@cute.jit
def publish_squares(squares, partials: cute.Tensor, tile: cutlass.Constexpr[int], thread: Int32, tiling):
    """:func:`project_tile`'s sums of squares to the last quad of ``partials`` (4, tokens, quads, warps)."""
    lane, owner = thread % 32, thread // 32
    g, q = lane // 4, lane % 4
    if q == g // 2:
        for half in cutlass.range_constexpr(2):
            quad = cute.make_rmem_tensor((QUAD,), Float32)
            quad.fill(0.0)
            quad[0] = squares[half]
            cute.autovec_copy(quad, partials[None, tile * TILE_TOKENS + half * 8 + g, tiling.quads - 1, owner])


@cute.jit
def project_passes(
    count: Int32,
    staged: cute.Tensor,
    groups,
    partials: cute.Tensor,
    barriers: cutlass.Constexpr,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Project role: ``count`` passes, each warp's outputs to ``partials`` (4, tokens, quads, warps)."""
    slot, phase = Int32(0), Int32(0)
    stage = stage_of_thread(staged, thread, tiling)
    for number in cutlass.range(count, unroll=1):
        cute.arch.mbarrier_wait(barriers.full + slot, phase)
        for tile in cutlass.range_constexpr(tiling.token_tiles):
            sums, squares = project_tile(stage, slot, groups, thread % 32, tile, tiling)
            if cutlass.const_expr(tile == 0):
                cute.arch.mbarrier_wait(barriers.taken, number % 2 ^ 1)
            mhc_project.publish_sums(sums, partials, tile, thread, tiling)
            publish_squares(squares, partials, tile, thread, tiling)
        arrive(barriers.summed, thread % 32)
        slot, phase = next_position(slot, phase, tiling.stages)
