"""Which query tile of which sequence a CTA works on, where sequences of any lengths lie one after another.

Only the device knows the lengths: ``starts`` (Int32, one more than there are sequences) holds the sums of those before
each sequence. A CTA walks along them as its work goes on, so that a launch of any lengths reads each start about once
a CTA, and a sequence without queries costs nothing else.

A work item is a query tile of one head of one sequence. Without pairs item i is number i in the order sequence, head,
tile, the last tile of a head, under a causal mask its longest, first. In pairs (``attention_tiles.is_paired``) items
2·u and 2·u + 1 are the two tiles of unit u; the middle tile of an odd number of tiles is a unit alone.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32


@cute.jit
def are_paired(
    queries: Int32, heads: Int32, ctas: Int32, tile_m: cutlass.Constexpr[int], causal: cutlass.Constexpr[bool]
):
    """Whether each CTA takes query tiles in pairs of a long and a short one.

    Only under a causal mask, and only if the ``queries`` of all sequences surely make more tiles than there are CTAs.
    """
    paired = False
    if cutlass.const_expr(causal):
        paired = queries // tile_m * heads > ctas
    return paired


@cute.jit
def span(starts: cute.Tensor, sequence: Int32, total: Int32):
    """``(first, count)``: the rows of a sequence, of ``total`` that there are, whatever the starts are."""
    first = cutlass.max(starts[sequence], Int32(0))
    return first, cutlass.max(cutlass.min(starts[sequence + 1], total) - first, Int32(0))


@cute.jit
def _units(tiles: Int32, heads: Int32, paired):
    count = tiles * heads
    if paired:
        count = (tiles + 1) // 2 * heads
    return count


@cute.jit
def find(
    work: Int32,
    sequence: Int32,
    first_unit: Int32,
    starts: cute.Tensor,
    sequences: Int32,
    total: Int32,
    heads: Int32,
    tile_m: cutlass.Constexpr[int],
    paired,
):
    """``(sequence, first_unit)`` of a work item, from those of an earlier one: the sequence that it lies in, and the
    units of all sequences before. ``sequence`` is ``sequences`` if there is no such item; it must be less at first."""
    unit = work
    if paired:
        unit = work // 2
    _, queries = span(starts, sequence, total)
    units = _units((queries + (tile_m - 1)) // tile_m, heads, paired)
    while unit >= first_unit + units:
        first_unit += units
        sequence += 1
        units = Int32(0x3FFFFFFF)  # behind the last sequence: ends the search
        if sequence < sequences:
            _, queries = span(starts, sequence, total)
            units = _units((queries + (tile_m - 1)) // tile_m, heads, paired)
    return sequence, first_unit


@cute.jit
def query_tile(work: Int32, first_unit: Int32, tiles: Int32, paired):
    """``(tile, head, has_partner)`` of a work item of a sequence of ``tiles``; its partner is the item after it."""
    tile, head = Int32(0), Int32(0)
    has_partner = False
    if paired:
        units = (tiles + 1) // 2
        unit = work // 2 - first_unit
        head = unit // units
        place = unit - head * units
        tile = place if work % 2 == 1 else tiles - 1 - place
        has_partner = work % 2 == 0 and place < tiles - 1 - place
    else:
        head = (work - first_unit) // tiles
        tile = tiles - 1 - (work - first_unit - head * tiles)
    return tile, head, has_partner


@cute.jit
def next_work(work: Int32, has_partner, ctas: Int32, paired):
    """The work item after ``work``: the partner of its tile, or the next of this CTA."""
    following = work + ctas
    if paired:
        following = (work // 2 + ctas) * 2
        if has_partner:
            following = work + 1
    return following
