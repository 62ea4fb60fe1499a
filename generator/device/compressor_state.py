"""Rows of a compressor's state: a token's kv, then its score with the ape of its phase added (dsv4-reference §5.3)."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

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
    threads: cutlass.Constexpr[int],
) -> None:
    """Write the rows of the lanes' tokens, from ``first`` on ``step`` apart; all ``threads`` of the CTA take part.

    ``row`` and ``phase``: what :func:`load_plan` gave. ``kv``, ``score``: float32 or bf16 [T, c]; ``ape``: float32
    [m, c]; ``state``: float32 [R, 2 · c]. Of a long chunk only the last tokens are kept: the others cost nothing.
    """
    kept = Uint32(cute.arch.vote_ballot_sync(row >= 0))
    while kept != 0:
        i = 31 - Int32(cute.arch.clz(kept))
        kept = kept ^ (Uint32(1) << Uint32(i))
        target, ape_row = cute.arch.shuffle_sync(row, i), cute.arch.shuffle_sync(phase, i)
        held = make_held(kv.element_type, ape.shape[1], threads)
        load_token(kv, score, ape, first + i * step, ape_row, held, threads)
        store_token(held, state, target, threads)


@cute.jit
def keep_tokens_after(
    kv: cute.Tensor,
    score: cute.Tensor,
    ape: cute.Tensor,
    state: cute.Tensor,
    row: Int32,
    phase: Int32,
    first: Int32,
    step: Int32,
    threads: cutlass.Constexpr[int],
    pdl: cutlass.Constexpr[bool],
) -> None:
    """:func:`keep_tokens` behind the launch before, which reads ``state`` and does not write the others.

    A first token, mostly the only one, is loaded before that launch has ended. Every CTA waits for it; with ``pdl`` the
    next launch may begin then.
    """
    last = 31 - Int32(cute.arch.clz(Uint32(cute.arch.vote_ballot_sync(row >= 0))))
    lane = cutlass.max(last, 0)
    target, ape_row = cute.arch.shuffle_sync(row, lane), cute.arch.shuffle_sync(phase, lane)
    held = make_held(kv.element_type, ape.shape[1], threads)
    if last >= 0:
        load_token(kv, score, ape, first + lane * step, ape_row, held, threads)
    cute.arch.griddepcontrol_wait()
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_launch_dependents()
    if last >= 0:
        store_token(held, state, target, threads)
    others = Int32(-1) if cute.arch.lane_idx() == last else row
    keep_tokens(kv, score, ape, state, others, phase, first, step, threads)


def make_held(
    dtype: type[cutlass.Numeric], channels: int, threads: int
) -> tuple[cute.Tensor, cute.Tensor, cute.Tensor]:
    """Registers for one thread's vectors of a token's kv, score (``dtype``) and ape (float32): (elements, rounds)."""
    elements = VECTOR_BITS // dtype.width
    shape = (elements, -(-channels // (elements * threads)))
    return (
        cute.make_rmem_tensor(shape, dtype),
        cute.make_rmem_tensor(shape, dtype),
        cute.make_rmem_tensor(shape, Float32),
    )


@cute.jit
def load_token(
    kv: cute.Tensor,
    score: cute.Tensor,
    ape: cute.Tensor,
    token: Int32,
    phase: Int32,
    held: tuple,
    threads: cutlass.Constexpr[int],
) -> None:
    """Vectors t, t + threads … of kv, of score and of the ape of ``phase`` into ``held``, for thread t."""
    values, gates, added = held
    thread, _, _ = cute.arch.thread_idx()
    elements, rounds = values.shape
    for v in cutlass.range_constexpr(rounds):
        column = (v * threads + thread) * elements
        if column < ape.shape[1]:
            load_at(address_of(kv, token, column), values[None, v])
            load_at(address_of(score, token, column), gates[None, v])
            load_at(address_of(ape, phase, column), added[None, v])


@cute.jit
def store_token(held: tuple, state: cute.Tensor, row: Int32, threads: cutlass.Constexpr[int]) -> None:
    """Write what :func:`load_token` holds as one row of ``state``: kv, then score + ape."""
    values, gates, added = held
    thread, _, _ = cute.arch.thread_idx()
    channels = state.shape[1] // 2
    elements, rounds = values.shape
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
