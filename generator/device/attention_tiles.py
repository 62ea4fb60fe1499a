"""Which query tile a CTA works on, and which key tiles that query tile needs.

Query i of ``queries`` sees key j of ``keys`` under a causal mask iff j ≤ i + keys − queries (bottom-right aligned).
Key tiles are visited from the last to the first, so that the masked ones come first and the rest need no mask.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32


@cute.jit
def is_paired(query_tiles: Int32, heads: Int32, ctas: Int32, causal: cutlass.Constexpr[bool]):
    """Whether each CTA takes query tiles in pairs of a long and a short one, which together have the same length.

    Only under a causal mask, and only if there are more tiles than CTAs. Pairs keep the CTAs within 3 % of each other
    at any number of heads, and all tiles of a head at about the same time in the L2. Dealing out single tiles, the
    longest first, is within 1 % only if it goes over all heads at once, whose K and V do not fit the L2; over sections
    of heads that do fit, the rounds of dealing resonate with the sections (up to 1.5 times the mean, simulated).
    """
    paired = False
    if cutlass.const_expr(causal):
        paired = query_tiles * heads > ctas
    return paired


@cute.jit
def work_count(query_tiles: Int32, heads: Int32, paired):
    """Work items of all heads. In pairs these are two a pair, then the middle tile of each head if there is one, which
    counts twice. (Among the pairs the half as long middle tiles would all fall to the same CTAs.)"""
    count = query_tiles * heads
    if paired:
        count = (query_tiles + query_tiles % 2) * heads
    return count


@cute.jit
def first_work(cta: Int32, paired):
    """The first work item of a CTA; ``next_work`` gives the others, until they reach ``work_count``."""
    work = cta
    if paired:
        work = 2 * cta
    return work


@cute.jit
def query_tile(work: Int32, query_tiles: Int32, heads: Int32, paired):
    """Work item → ``(query tile, head)``, heads counted over the batch; of a head the last query tile, the longest,
    comes first."""
    head = work // query_tiles
    tile = query_tiles - 1 - (work - head * query_tiles)
    if paired:
        pairs_of_head = query_tiles // 2
        pairs = pairs_of_head * heads
        pair = work // 2
        head, tile = pair - pairs, pairs_of_head  # a middle tile
        if pair < pairs:
            head = pair // pairs_of_head
            place = pair - head * pairs_of_head
            tile = place if work % 2 == 1 else query_tiles - 1 - place
    return tile, head


@cute.jit
def next_work(work: Int32, query_tiles: Int32, heads: Int32, ctas: Int32, paired):
    """The work item after ``work``: the partner of its tile, or the next of this CTA."""
    following = work + ctas
    if paired:
        following = (work // 2 + ctas) * 2
        if work % 2 == 0 and work < query_tiles // 2 * heads * 2:
            following = work + 1
    return following


@cute.jit
def key_tile_range(
    first_query: Int32,
    queries: Int32,
    keys: Int32,
    tile_m: cutlass.Constexpr[int],
    tile_n: cutlass.Constexpr[int],
    causal: cutlass.Constexpr[bool],
):
    """``(tiles, unmasked)``: how many key tiles the query tile needs, and how many of the first need no mask.

    The tiles needed are 0 … tiles − 1; of these 0 … unmasked − 1 lie wholly inside ``keys`` and, under a causal mask,
    wholly in sight of every query of the tile.
    """
    seen = keys
    unmasked = keys // tile_n
    if cutlass.const_expr(causal):
        offset = keys - queries
        seen = cutlass.max(cutlass.min(first_query + tile_m + offset, keys), Int32(0))
        seen_by_all = cutlass.max(cutlass.min(first_query + 1 + offset, keys), Int32(0))
        unmasked = seen_by_all // tile_n
    return (seen + (tile_n - 1)) // tile_n, unmasked
