"""Rows of a compressor's state: a token's kv, then its score with the ape of its phase added (dsv4-reference §5.3)."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64

from dsv4.generator.device.compressor_members import address_of, load_at
from dsv4.generator.device.vector_io import VECTOR_BITS, to_float32

TOKENS_OF_CTA = 32  # at most: each lane of a warp reads the plan of one


@cute.jit
def load_plan(rows: cute.Tensor, phases: cute.Tensor, first: Int32, step: Int32) -> tuple[Int32, Int32]:
    """State row (−1: none) and phase of token ``first`` + lane · ``step``: every lane of a warp has another token."""
    token = first + cute.arch.lane_idx() * step
    row, phase = Int32(-1), Int32(0)
    if token < rows.shape[0]:
        row, phase = Int32(rows[token]), Int32(phases[token])
    return row, phase


@cute.jit
def keep_tokens(
    kv: cute.Tensor,
    score: cute.Tensor,
    ape: cute.Tensor,
    state: cute.Tensor,
    row: Int32,
    phase: Int32,
    first: Int32,
    step: Int32,
    count: Int32,
    threads: cutlass.Constexpr[int],
) -> None:
    """Write the rows of up to ``count`` tokens, from ``first`` on ``step`` apart; all ``threads`` of the CTA take part.

    ``row`` and ``phase``: what :func:`load_plan` gave. ``kv``, ``score``: float32 or bf16 [T, c]; ``ape``: float32
    [m, c]; ``state``: float32 [R, 2 · c].
    """
    for i in cutlass.range(count, unroll=1):
        target = cute.arch.shuffle_sync(row, i)
        if target >= 0:
            ape_row = cute.arch.shuffle_sync(phase, i)
            keep_token(kv, score, ape, state, first + i * step, target, ape_row, threads)


@cute.jit
def keep_token(
    kv: cute.Tensor,
    score: cute.Tensor,
    ape: cute.Tensor,
    state: cute.Tensor,
    token: Int32,
    row: Int32,
    phase: Int32,
    threads: cutlass.Constexpr[int],
) -> None:
    """Write one row: thread t copies vectors t, t + threads … of kv and of score, all loads before the first store."""
    thread, _, _ = cute.arch.thread_idx()
    channels = ape.shape[1]
    elements = VECTOR_BITS // kv.element_type.width
    rounds = -(-channels // (elements * threads))
    values = cute.make_rmem_tensor((elements, rounds), kv.element_type)
    gates = cute.make_rmem_tensor((elements, rounds), kv.element_type)
    added = cute.make_rmem_tensor((elements, rounds), Float32)
    for v in cutlass.range_constexpr(rounds):
        column = (v * threads + thread) * elements
        if column < channels:
            load_at(address_of(kv, token, column), values[None, v])
            load_at(address_of(score, token, column), gates[None, v])
            load_at(address_of(ape, phase, column), added[None, v])
    for v in cutlass.range_constexpr(rounds):
        column = (v * threads + thread) * elements
        if column < channels:
            target = address_of(state, row, column)
            sums = wide(gates[None, v])
            sums.store(sums.load() + added[None, v].load())
            store_float32(wide(values[None, v]), target)
            store_float32(sums, target + 4 * channels)


@cute.jit
def wide(fragment: cute.Tensor) -> cute.Tensor:
    """The elements of a bf16 or float32 fragment as float32, in new registers."""
    result = cute.make_rmem_tensor(fragment.shape, Float32)
    if cutlass.const_expr(fragment.element_type is Float32):
        result.store(fragment.load())
    else:
        result.store(to_float32(fragment).load())
    return result


@cute.jit
def store_float32(fragment: cute.Tensor, address: Int64) -> None:
    """Store a float32 fragment of whole 16-byte vectors to global memory; ``address`` is a multiple of 16."""
    pointer = cute.make_ptr(Float32, address, cute.AddressSpace.gmem, assumed_align=16)
    target = cute.make_tensor(pointer, cute.make_layout(cute.size(fragment)))
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), Float32, num_bits_per_copy=VECTOR_BITS)
    cute.copy(atom, fragment, target)
