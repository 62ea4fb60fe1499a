"""The float32 weights of mHC as bf16 operands of ``mma.m16n8k16``: three bf16 terms whose sum is the weight.

A float32 has 24 significant bits. Rounding to bf16 leaves a rest 2^-9 as large, so three terms are the weight exactly.
The streams are bf16 already: what float32 accumulation gives is a float32 matrix product.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Uint32

from dsv4.generator.device.mhc_byte_term import CODES, last_term, split_to_byte
from dsv4.generator.device.mhc_tiling import STREAMS, TERMS, WARP_COLUMNS, Tiling
from dsv4.generator.device.vector_io import VECTOR_BITS, VECTOR_ELEMENTS, to_float32

PAIRS = VECTOR_ELEMENTS // 2


@cute.jit
def spare_of_thread(spare_weights: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr) -> cute.Tensor:
    """One thread's part of the shared memory for the terms that are not kept in registers, 16 bytes at a time."""
    step = PAIRS * tiling.threads
    layout = cute.make_layout(
        (PAIRS, tiling.output_tiles, STREAMS, tiling.spare_terms),
        stride=(1, step, tiling.output_tiles * step, STREAMS * tiling.output_tiles * step),
    )
    start = cute.assume(thread * PAIRS, divby=PAIRS)
    return cute.make_tensor(cute.recast_tensor(spare_weights, Uint32).iterator + start, layout)


@cute.jit
def load_weights(
    fn: cute.Tensor,
    spare,
    rank: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
    together: cutlass.Constexpr[int],
):
    """This lane's part of ``fn`` (outputs, 4 · columns): registers ``(4, output tiles, streams, register terms)``.

    The four registers are pairs of bf16 of the lane's eight columns of output ``lane // 4`` of the tile, in order. Of
    32 columns lane ``l`` has ``together`` (8 or 2) from ``together · (l % 4)`` on, and as many every ``4 · together``.
    Terms that are not kept in registers go to ``spare``, shared memory of this thread alone,
    ``(4, output tiles, streams, terms left)``; None where there are none. Returned as well: the last term as bytes,
    ``(2, output tiles, streams)``, or None.
    """
    column = rank * tiling.slice_columns + thread // 32 * WARP_COLUMNS + thread % 4 * together
    output = thread % 32 // 4
    wide = cutlass.const_expr(min(together, VECTOR_BITS // 32))
    pieces = VECTOR_ELEMENTS // wide
    steps = cute.make_layout((wide, pieces), stride=(1, wide if together == VECTOR_ELEMENTS else 4 * together))
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Float32, num_bits_per_copy=32 * wide)
    tiles = tiling.output_tiles
    kept = cute.make_rmem_tensor((PAIRS, tiles, STREAMS, tiling.register_terms), Uint32)
    codes = _place_for_bytes(tiling)
    # The loads of the next stream are on their way while this one's weights are split.
    loaded = [cute.make_rmem_tensor((VECTOR_ELEMENTS, tiles), Float32) for _ in range(STREAMS)]
    for turn in cutlass.range_constexpr(STREAMS + 1):
        if cutlass.const_expr(turn < STREAMS):
            if cutlass.const_expr(tiling.outputs % 8 != 0):
                loaded[turn].fill(0.0)
            for n in cutlass.range_constexpr(tiles):
                start = (n * 8 + output) * (STREAMS * tiling.columns) + turn * tiling.columns + column
                source = cute.make_tensor(fn.iterator + cute.assume(start, divby=together), steps)
                target = cute.make_tensor(loaded[turn][None, n].iterator, cute.make_layout((wide, pieces)))
                if cutlass.const_expr(tiling.outputs % 8 != 0):
                    if n * 8 + output < tiling.outputs:
                        cute.copy(atom, source, target)
                else:
                    cute.copy(atom, source, target)
        if cutlass.const_expr(turn > 0):
            j = turn - 1
            for n in cutlass.range_constexpr(tiles):
                if cutlass.const_expr(tiling.byte_terms):
                    terms, last = split_to_byte(loaded[j][None, n])
                    cute.autovec_copy(last, codes[None, n, j])
                else:
                    terms = split(loaded[j][None, n])
                for term in cutlass.range_constexpr(TERMS - tiling.byte_terms):
                    if cutlass.const_expr(term < tiling.register_terms):
                        cute.autovec_copy(terms[None, term], kept[None, n, j, term])
                    else:
                        cute.autovec_copy(terms[None, term], spare[None, n, j, term - tiling.register_terms])
    return kept, codes


def _place_for_bytes(tiling: Tiling) -> Any:
    if not tiling.byte_terms:
        return None
    return cute.make_rmem_tensor((CODES, tiling.output_tiles, STREAMS), Uint32)


@cute.jit
def term_of(
    kept: cute.Tensor,
    codes,
    spare,
    n: cutlass.Constexpr[int],
    j: cutlass.Constexpr[int],
    term: cutlass.Constexpr[int],
    tiling: cutlass.Constexpr,
) -> cute.Tensor:
    """One term of the weights of an output tile and a stream, ``(4,)``, from where :func:`load_weights` put it."""
    pairs = cute.make_rmem_tensor((PAIRS,), Uint32)
    if cutlass.const_expr(term < tiling.register_terms):
        cute.autovec_copy(kept[None, n, j, term], pairs)
    elif cutlass.const_expr(term >= TERMS - tiling.byte_terms):
        cute.autovec_copy(last_term(codes[None, n, j], kept[None, n, j, 0]), pairs)
    else:
        cute.autovec_copy(spare[None, n, j, term - tiling.register_terms], pairs)
    return pairs


@cute.jit
def split(values: cute.Tensor) -> cute.Tensor:
    """Eight float32 as three bf16 each, the largest first: registers ``(4, 3)``, two bf16 in each.

    A term is the rest that the terms before it left, rounded; what is left after it is exact in float32.
    """
    rest = cute.make_rmem_tensor((VECTOR_ELEMENTS,), Float32)
    rest.store(values.load())
    packed = cute.make_rmem_tensor((PAIRS, TERMS), Uint32)
    for term in cutlass.range_constexpr(TERMS):
        head = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
        head.store(rest.load().to(BFloat16))
        cute.autovec_copy(cute.recast_tensor(head, Uint32), packed[None, term])
        if cutlass.const_expr(term + 1 < TERMS):
            rest.store(rest.load() - to_float32(head).load())
    return packed
