"""Four residual streams at a few columns of one token: moving them, 16 bytes at a time or fewer, and mixing them."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32

from dsv4.generator.device.mhc_tiling import STREAMS
from dsv4.generator.device.vector_io import VECTOR_BITS, VECTOR_ELEMENTS, to_float32


@cute.jit
def vector_at(row: cute.Tensor, vector, elements: cutlass.Constexpr[int] = VECTOR_ELEMENTS) -> cute.Tensor:
    """Vector number ``vector`` of a compact bf16 ``row`` (columns,): ``elements`` of them, 2, 4 or 8 (16 bytes)."""
    start = cute.assume(vector * elements, divby=elements)
    return cute.make_tensor(row.iterator + start, cute.make_layout(elements))


@cute.jit
def load_vector(source: cute.Tensor) -> cute.Tensor:
    """One load from global memory: a vector of :func:`vector_at` in registers."""
    fragment = cute.make_rmem_tensor((cute.size(source),), BFloat16)
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), BFloat16, num_bits_per_copy=16 * cute.size(source))
    cute.copy(atom, source, fragment)
    return fragment


@cute.jit
def store_vector(fragment: cute.Tensor, target: cute.Tensor) -> None:
    """One store of a vector to global memory."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), BFloat16, num_bits_per_copy=16 * cute.size(fragment))
    cute.copy(atom, fragment, target)


@cute.jit
def load_floats(source: cute.Tensor, count: cutlass.Constexpr[int]) -> cute.Tensor:
    """``count`` float32 that lie together in global memory, 16 bytes aligned and a multiple of four, in registers."""
    fragment = cute.make_rmem_tensor((count,), Float32)
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Float32, num_bits_per_copy=VECTOR_BITS)
    flat = cute.make_tensor(source.iterator, cute.make_layout((4, count // 4)))
    cute.copy(atom, flat, cute.make_tensor(fragment.iterator, cute.make_layout((4, count // 4))))
    return fragment


@cute.jit
def mixed_streams(update: cute.Tensor, streams, post: cute.Tensor, comb: cute.Tensor):
    """post[k] · update + Σ_j comb[j, k] · streams_j for each stream k, rounded once to bf16.

    ``update`` and the four ``streams``: bf16 of the same columns in registers; ``post`` (4,), ``comb`` (16,) float32,
    the source stream first. Returns four such.
    """
    results = []
    for k in cutlass.range_constexpr(STREAMS):
        results.append(mixed_stream(update, streams, post[k], [comb[STREAMS * j + k] for j in range(STREAMS)]))
    return results


@cute.jit
def mixed_stream(update: cute.Tensor, streams, post: Float32, comb):
    """post · update + Σ_j comb_j · streams_j, rounded once: bf16 of the same few columns each, numbers float32."""
    total = to_float32(update).load() * post
    for j in cutlass.range_constexpr(STREAMS):
        total = to_float32(streams[j]).load() * comb[j] + total
    result = cute.make_rmem_tensor(update.shape, BFloat16)
    result.store(total.to(BFloat16))
    return result
