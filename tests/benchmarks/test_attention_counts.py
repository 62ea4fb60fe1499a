"""The note of counts for attention on sm_100a is what the cost model counts, which is what the other notes say."""

from __future__ import annotations

from benchmarks.attention_counts import FLOP_PER_CYCLE, NOTE, kernels, text, tile_of


def test_the_note_is_what_would_be_written() -> None:
    assert NOTE.read_text() == text()


def test_a_tile_of_64_heads_is_that_of_the_note_on_decoding() -> None:
    tile = tile_of(kernels()["decode, 64 heads, packed"])
    assert (tile.keys, tile.bytes, tile.mma, tile.exp2) == (64, 64 * 588, 2048, 256)
    assert abs(tile.smem - 2430) < 5 and tile.limit == "shared memory"


def test_a_tile_of_few_heads_is_worked_out_by_hand() -> None:
    """Raw rows in and out, V in and out, Q and P as operands B, P in; without K in tensor memory K is read too."""
    for heads, products in ((8, 8), (16, 4), (32, 4)):
        tile = tile_of(kernels()[f"decode, {heads} heads, packed"])
        smem = 2 * 64 * 576 + 2 * 65536 + 1024 * heads + (products + 1) * 128 * heads
        assert (tile.smem, tile.exp2, tile.bytes) == (smem // 128, 4 * heads, 64 * 588)
    in_smem = tile_of(kernels()["16 heads, K in shared memory (`k_operand` smem)"])
    assert in_smem.smem - tile_of(kernels()["decode, 16 heads, packed"]).smem == 65536 // 128


def test_a_pair_has_half_of_the_products_time_and_the_same_bytes() -> None:
    alone, pair = (
        tile_of(kernels()[name]) for name in ("decode, 128 heads, packed", "the same in pairs (`cta_group` 2)")
    )
    assert pair.mma * 2 == alone.mma and pair.bytes == alone.bytes and pair.smem < alone.smem


def test_a_tile_of_fmha_is_worked_out_by_hand() -> None:
    """256 queries, 128 keys: two products each way; K and V once; what a polynomial gives the unit does not."""
    tile = tile_of(kernels()["fmha, D = 128"])
    assert tile.mma == 2 * 2 * 256 * 128 * 128 // FLOP_PER_CYCLE == 2048
    assert tile.exp2 == 256 * 128 // 16 and tile.bytes == 2 * 2 * 128 * 128
    emulated = tile_of(kernels()["fmha, D = 64, `exp2_emulated` 8"])
    assert emulated.exp2 == tile_of(kernels()["fmha, D = 64"]).exp2 * 3 // 4
