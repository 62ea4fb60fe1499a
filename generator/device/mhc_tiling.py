"""How a cluster of CTAs shares the projections of mHC: each CTA owns a slice of the columns, in all four streams.

A warp owns 32 columns of its CTA's slice and, in registers, the weights of those columns of the four streams, for as
long as the kernel runs. It works on 16 tokens at a time with ``mma.m16n8k16``: the tokens are the rows of A, the
outputs the columns of B. Lane ``l`` holds eight columns, ``8 · (l % 4)`` and on, of the tokens ``l // 4`` and
``l // 4 + 8``. Which of its columns stands at which k of the product is free as long as A and B agree: the eight are
taken in order, four a step, so that a lane's part is one 16-byte vector and nothing moves between lanes.
"""

from __future__ import annotations

from typing import NamedTuple

STREAMS = 4
WARP_COLUMNS = 32
TILE_TOKENS = 16
TERMS = 3
"""Of a float32 weight: bf16 has 8 bits and a sign, so three of them hold 24 bits."""
QUAD = 4
"""Float32 in 16 bytes: what is sent and read at a time."""
FLOAT_BYTES = 4


def kept_short(thread, number, tiling: Tiling):
    """``thread`` in pass ``number``. Where registers are scarce the compiler shall not see that it never changes: what
    follows from it is then worked out in each pass, not held, or spilled, over all. There are never 2^28 passes."""
    return thread + (number >> 28) if tiling.groups > 1 else thread


class Tiling(NamedTuple):
    """What is fixed at compile time. Three terms add up to a weight: the first ``register_terms`` bf16 in registers,
    the last ``byte_terms`` (0 or 1) bytes in registers, those between bf16 in shared memory. ``groups``: of 32 columns
    that a warp owns, more than 1 where warps have roles of their own."""

    columns: int
    cluster: int
    outputs: int
    token_tiles: int
    stages: int
    register_terms: int
    byte_terms: int = 0
    groups: int = 1

    @property
    def spare_terms(self) -> int:
        """Terms of a weight in shared memory."""
        return TERMS - self.register_terms - self.byte_terms

    @property
    def slice_columns(self) -> int:
        """Columns of a stream that one CTA owns."""
        return self.columns // self.cluster

    @property
    def warps(self) -> int:
        """Warps that own columns, each 32; with ``groups`` those that there would be."""
        return self.slice_columns // WARP_COLUMNS

    @property
    def role_warps(self) -> int:
        """Warps that own columns in one role."""
        return self.warps // self.groups

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def tokens(self) -> int:
        """Tokens of a pass."""
        return TILE_TOKENS * self.token_tiles

    @property
    def owned(self) -> int:
        """Tokens of a pass whose weights one CTA of the cluster works out: those of its rank modulo the cluster."""
        return self.tokens // self.cluster

    @property
    def output_tiles(self) -> int:
        return -(-self.outputs // 8)

    @property
    def quads(self) -> int:
        """16-byte pieces of what a CTA sends for a token: its outputs, then the sum of squares."""
        return self.outputs // QUAD + 1

    @property
    def vectors(self) -> int:
        """16-byte vectors of a thread in one stage: tiles, two tokens each, four streams each."""
        return self.token_tiles * 2 * STREAMS

    @property
    def partial_bytes(self) -> int:
        """Bytes that a CTA gets in a pass: the partial outputs of the tokens that it owns, from everyone."""
        return self.cluster * self.owned * self.quads * QUAD * FLOAT_BYTES

    @property
    def weight_bytes(self) -> int:
        """Bytes that a CTA gets in a pass: the stream weights of each token."""
        return self.tokens * STREAMS * FLOAT_BYTES

    @property
    def square_bytes(self) -> int:
        """Bytes that a CTA gets in a pass: everyone's sum of squares of each token."""
        return self.tokens * self.cluster * FLOAT_BYTES
