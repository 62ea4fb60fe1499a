"""Which query tile a CTA of the sm_100 attention works on, and which key tiles that query tile needs.

Query i of ``queries`` sees key j of ``keys`` under a causal mask iff j ≤ i + keys − queries (bottom-right aligned).
Key tiles are visited from the first to the last: the first of them need no mask, and a row's maximum is known early.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32


@cute.jit
def query_tile(work: Int32, query_tiles: Int32):
    """Work item → ``(query tile, head)``, heads counted over the batch.

    A head's tiles follow one another, so that its keys are read from the L2 by all but the first; the last tile, which
    has the most keys under a causal mask, starts first.
    """
    head = work // query_tiles
    return query_tiles - 1 - (work - head * query_tiles), head


@cute.jit
def keys_in_sight(query: Int32, queries: Int32, keys: Int32, causal: cutlass.Constexpr[bool]) -> Int32:
    """How many keys, from key 0 on, the query sees; at most ``keys``, also for a query beyond the last."""
    seen = keys
    if cutlass.const_expr(causal):
        seen = cutlass.max(cutlass.min(query + 1 + (keys - queries), keys), Int32(0))
    return seen


@cute.jit
def key_tile_count(
    first_query: Int32,
    queries: Int32,
    keys: Int32,
    rows: cutlass.Constexpr[int],
    tile_n: cutlass.Constexpr[int],
    causal: cutlass.Constexpr[bool],
) -> Int32:
    """How many key tiles some query of ``first_query`` … ``first_query + rows − 1`` needs: tiles 0 … count − 1."""
    return (keys_in_sight(first_query + (rows - 1), queries, keys, causal) + (tile_n - 1)) // tile_n


@cute.jit
def unmasked_tile_count(
    first_query: Int32, queries: Int32, keys: Int32, tile_n: cutlass.Constexpr[int], causal: cutlass.Constexpr[bool]
) -> Int32:
    """How many of the first key tiles lie wholly in sight of ``first_query`` and of every query after it."""
    return keys_in_sight(first_query, queries, keys, causal) // tile_n
