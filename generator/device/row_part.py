"""Which logits of a row a thread has: vectors of 16 bytes, in one or more chunks, each of which fits its registers."""

from __future__ import annotations

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.vector_io import to_float32

HELD_MOST = 32
"""Logits of a thread that stay in its registers: it then has one chunk."""
CHUNK = 16
"""Logits of a chunk where a thread has more and reads them again for each pass."""


@dataclass(frozen=True)
class Part:
    """A row of ``vocabulary`` logits shared by ``ctas`` CTAs of ``threads`` threads, ``vector`` logits in 16 bytes.

    A CTA has neighbouring vectors. Number v of a thread's chunk c is vector (v · chunks + c) · threads + thread of its
    CTA: a chunk is spread over the CTA's part, and so a sample of it.
    """

    vocabulary: int
    vector: int
    ctas: int
    threads: int
    listed: int

    @property
    def cta_vectors(self) -> int:
        return -(-(self.vocabulary // self.vector) // self.ctas)

    @property
    def thread_vectors(self) -> int:
        return -(-self.cta_vectors // self.threads)

    @property
    def is_held(self) -> bool:
        return self.thread_vectors * self.vector <= HELD_MOST

    @property
    def chunk_vectors(self) -> int:
        return self.thread_vectors if self.is_held else CHUNK // self.vector

    @property
    def chunk(self) -> int:
        """Logits of a chunk."""
        return self.chunk_vectors * self.vector

    @property
    def chunks(self) -> int:
        return -(-self.thread_vectors // self.chunk_vectors)

    @property
    def stride(self) -> int:
        """Tokens between a chunk's vectors."""
        return self.chunks * self.threads * self.vector

    @property
    def group_lanes(self) -> int:
        """Threads whose tokens are a group of the short list."""
        return max(1, min(32, self.threads * self.ctas // self.listed))

    @property
    def groups(self) -> int:
        return self.ctas * self.threads // self.group_lanes

    @property
    def small_k(self) -> int:
        """Above the k-th largest of G groups' maxima are about −G ln(1 − k / G) tokens: at this k as many as groups."""
        return self.groups * 5 // 8

    def may_miss(self, v: int) -> bool:
        """Whether vector ``v`` of some thread's chunk is not there."""
        last = (v * self.chunks + self.chunks) * self.threads
        return last > self.cta_vectors or self.ctas * self.cta_vectors > self.vocabulary // self.vector


def offset_of(i: int, part: Part) -> int:
    """How many tokens after a chunk's first logit its ``i``-th one is."""
    return i // part.vector * part.stride + i % part.vector


def index_of(first: Int32, i: Int32, part: Part) -> Int32:
    """The token of a chunk's ``i``-th logit.

    A constant ``i`` is better compared by its :func:`offset_of`: sums that several places share stay in registers.
    """
    return first + i // part.vector * part.stride + i % part.vector


@cute.jit
def first_index(chunk: Int32, rank: Int32, thread: Int32, part: cutlass.Constexpr[Part]) -> Int32:
    """The token of a chunk's first logit; the others are :func:`offset_of` later."""
    return (rank * part.cta_vectors + chunk * part.threads + thread) * part.vector


@cute.jit
def is_there(chunk: Int32, v: cutlass.Constexpr[int], rank: Int32, thread: Int32, part: cutlass.Constexpr[Part]):
    """Whether vector ``v`` of this thread's chunk lies in its CTA's part and in the row."""
    own = (v * part.chunks + chunk) * part.threads + thread
    return own < part.cta_vectors and rank * part.cta_vectors + own < part.vocabulary // part.vector


@cute.jit
def load_chunk(
    row: cute.Tensor, chunk: Int32, rank: Int32, thread: Int32, part: cutlass.Constexpr[Part], absent: float
) -> cute.Tensor:
    """This thread's logits of a chunk, float32 [part.chunk] in registers, ``absent`` in place of those not there.

    ``row``: float32 or bf16 [vocabulary], aligned to 16 bytes.
    """
    dtype = row.element_type
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), dtype, num_bits_per_copy=128)
    count = part.vocabulary // part.vector
    vectors = cute.make_tensor(row.iterator, cute.make_layout((part.vector, count), stride=(1, part.vector)))
    held = cute.make_rmem_tensor((part.vector, part.chunk_vectors), dtype)
    for v in cutlass.range_constexpr(part.chunk_vectors):
        own = rank * part.cta_vectors + (v * part.chunks + chunk) * part.threads + thread
        if cutlass.const_expr(part.may_miss(v)):
            for i in cutlass.range_constexpr(part.vector):
                held[i, v] = dtype(absent)
            if is_there(chunk, v, rank, thread, part):
                cute.copy(atom, vectors[None, own], held[None, v])
        else:
            cute.copy(atom, vectors[None, own], held[None, v])
    if cutlass.const_expr(not part.is_held):
        _fetch_next(row, chunk + 1, rank, thread, part)
    logits = to_float32(held) if cutlass.const_expr(dtype is not Float32) else held
    return cute.make_tensor(logits.iterator, cute.make_layout((part.chunk,)))


@cute.jit
def _fetch_next(row: cute.Tensor, chunk: Int32, rank: Int32, thread: Int32, part: cutlass.Constexpr[Part]) -> None:
    """Have the chunk brought into the L2 cache, but for vectors that some threads lack."""
    if chunk < part.chunks:
        for v in cutlass.range_constexpr(part.chunk_vectors):
            if cutlass.const_expr(not part.may_miss(v)):
                own = rank * part.cta_vectors + (v * part.chunks + chunk) * part.threads + thread
                address = (row.iterator + own * part.vector).toint()
                cute.arch.inline_ptx("prefetch.global.L2 [{$r0}];", read_only_args=[address])


def chunk_of(
    row: cute.Tensor,
    held: cute.Tensor,
    chunk: Int32,
    rank: Int32,
    thread: Int32,
    part: Part,
) -> cute.Tensor:
    """The chunk's logits, NaN where there is none: ``held`` if the thread has one chunk, else read from ``row``."""
    return held if part.is_held else load_chunk(row, chunk, rank, thread, part, float("nan"))


@cute.jit
def kept_bits(
    logits: cute.Tensor,
    threshold: Float32,
    last_index: Int32,
    first: Int32,
    part: cutlass.Constexpr[Part],
) -> Uint32:
    """A bit for each logit of a chunk that is above ``threshold``, or equal to it and of no index after ``last_index``.

    ``first``: :func:`first_index`. A NaN has none.
    """
    bits, last_offset = Uint32(0), last_index - first
    for i in cutlass.range_constexpr(part.chunk):
        is_early = offset_of(i, part) <= last_offset
        is_kept = logits[i] > threshold or (logits[i] == threshold and is_early)
        bits = bits | (Uint32(1 << i) if is_kept else Uint32(0))
    return bits
