"""The cost model's counts of the decoding attention and of fmha_varlen: those of their notes, grids and ranking."""

from __future__ import annotations

import pytest

from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.counts import LaunchCounts, count
from dsv4.tuner.cost.model import predict, rates
from dsv4.tuner.cost.rank import Predictor
from dsv4.tuner.target import Target

DECODE = "sparse_attention_decode"
ROWS = {"extra": "rows"}
HALF_Q = {"q_register_columns": 256}
TILE_FLOP = 4096  # of the tensor cores of an SM of sm_90a in a cycle


def one(arch: str, heads: int, sizes: dict[str, int], config: dict | None = None, **variant) -> LaunchCounts:
    (found,) = count(Target(DECODE, arch, dims={"H": heads}, variant=variant).planner().plan(config), sizes)
    return found


def us(arch: str, heads: int, sizes: dict[str, int], config: dict | None = None, **variant) -> float:
    return predict([one(arch, heads, sizes, config, **variant)], rates(arch), shipped().of()).us


def keys(requests: int, second: int = 512, queries: int = 1) -> dict[str, int]:
    return {"B": requests, "Q": queries, "K0": 128, "K1": second, "page1": 64}


def per_tile(found: LaunchCounts, tiles: int) -> tuple[float, float]:
    """Cycles of shared memory and of the tensor cores."""
    return found.smem_bytes / tiles / 128, found.mma_flop / tiles / TILE_FLOP


def test_a_tile_costs_what_the_notes_say():
    sizes, tiles = keys(128), 128 * 10
    assert per_tile(one("sm_90a", 64, sizes, **ROWS), tiles) == (2752, 2048)
    assert per_tile(one("sm_90a", 64, sizes, HALF_Q, cache="plain", **ROWS), tiles) == (2048, 2048)
    for heads, smem, issue in ((8, 2240, 1720), (16, 2368, 1810), (32, 2624, 2010)):
        few, more = (one("sm_90a", heads, keys(128, second), **ROWS) for second in (512, 576))
        assert per_tile(few, tiles) == (smem, 1024)
        assert (more.instructions - few.instructions) / 128 / 4 == pytest.approx(issue, rel=0.02)
    assert per_tile(one("sm_90a", 128, sizes, {"pair": 1}, **ROWS), 2 * tiles) == (2656, 2048)
    pair = {**HALF_Q, "pair": 1}
    assert per_tile(one("sm_90a", 128, sizes, pair, cache="plain", **ROWS), 2 * tiles) == (2304, 2048)
    smem, products = per_tile(one("sm_100a", 64, sizes, **ROWS), tiles)
    assert smem == pytest.approx(2430, rel=0.01) and products == 4096  # half as much of twice as fast tensor cores
    for heads, with_keys, without in ((8, 1736, 2248), (16, 1808, 2320), (32, 2016, 2528)):
        few, few_by_row = (one("sm_100a", heads, sizes, cache=cache, **ROWS) for cache in ("kv_fp8_aligned", "kv_fp8"))
        assert per_tile(few, tiles)[0] == with_keys and per_tile(few_by_row, tiles)[0] == without
        assert few.mma_flop < few_by_row.mma_flop < one("sm_100a", 64, sizes, **ROWS).mma_flop
    smem, products = per_tile(one("sm_100a", 128, sizes, {"cta_group": 2}, **ROWS), 2 * tiles)
    assert smem == pytest.approx(1850, rel=0.01) and products == 2048


def test_a_row_of_a_pair_is_read_once_for_two_blocks_of_heads():
    alone, pair = (one("sm_90a", 128, keys(64, 1024), {"splits": 1, "pair": number}, **ROWS) for number in (0, 1))
    rows = 64 * (128 + 1024) * 588
    assert alone.l2_bytes - pair.l2_bytes == rows and alone.hbm_bytes == pair.hbm_bytes
    assert alone.ctas == pair.ctas == 128 and alone.slots == pair.slots == 132


SPLIT = [  # arch, heads, requests, CTAs
    ("sm_90a", 64, 1, 8),
    ("sm_90a", 64, 16, 128),
    ("sm_90a", 64, 33, 132),
    ("sm_90a", 64, 67, 67),
    ("sm_90a", 128, 33, 132),
    ("sm_90a", 128, 34, 68),
    ("sm_90a", 8, 16, 128),
    ("sm_100a", 64, 37, 148),
    ("sm_100a", 8, 18, 144),
]


@pytest.mark.parametrize(("arch", "heads", "requests", "ctas"), SPLIT)
def test_queries_are_split_as_the_host_does(arch, heads, requests, ctas):
    assert one(arch, heads, keys(requests), **ROWS).ctas == ctas


def test_a_few_keys_are_not_split_further_than_into_tiles():
    assert one("sm_90a", 64, {"B": 1, "Q": 1, "K0": 128}).ctas == 2
    assert one("sm_90a", 64, {"B": 1, "Q": 1, "K0": 64}).ctas == 1
    pages = {"B": 1, "Q": 1, "K0": 64, "page1": 64, "PT": 3}
    assert one("sm_90a", 64, pages, extra="pages").ctas == 4
    assert count(Target(DECODE, "sm_90a").default(), {"B": 0, "Q": 1, "K0": 128}) == []


def test_what_was_foreseen_by_hand_is_ranked_so():
    few = {"splits": 0, "split_ctas": 132}
    assert us("sm_90a", 8, keys(64), {**few, "operand_order": "keys_as_rows"}, **ROWS) < us(
        "sm_90a", 8, keys(64), {**few, "operand_order": "heads_as_rows"}, **ROWS
    )
    for heads in (8, 16, 32):
        flags = {"cache": "kv_fp8_aligned", **ROWS}
        filled_up, in_smem, default = (
            us("sm_100a", heads, keys(64), config, **flags)
            for config in ({"operand_order": "heads_as_rows"}, {"k_operand": "smem"}, None)
        )
        assert default < in_smem < filled_up
    for requests, is_better in ((1, False), (64, True)):  # a cluster of eight CTAs alone has half of a pair's tiles
        alone, pair = (us("sm_90a", 128, keys(requests, 1024), {"pair": number}, **ROWS) for number in (0, 1))
        assert (pair < alone) == is_better
    assert us("sm_90a", 64, keys(64), {"splits": 1}, **ROWS) > us("sm_90a", 64, keys(64), {"splits": 2}, **ROWS)
    target = Target(DECODE, "sm_100a", variant={"extra": "rows"})
    ranked = Predictor(DECODE, [keys(64)], rates("sm_100a"), shipped().of()).rank(target.space(), target.default())
    assert ranked[0].plan.is_default and ranked[-1].us > 1.3 * ranked[0].us


@pytest.mark.parametrize(("arch", "config"), [("sm_90a", {"persistent_ctas": 0}), ("sm_90a", {}), ("sm_100a", {})])
@pytest.mark.parametrize("causal", [False, True])
def test_one_sequence_counts_as_fmha_does(arch, config, causal):
    variant = {"causal": causal}
    fixed = Target("fmha", arch, dims={"D": 128}, variant=variant).planner()
    varlen = Target("fmha_varlen", arch, dims={"D": 128}, variant=variant).planner()
    sizes = {"B": 1, "Hq": 8, "Hkv": 2, "Sq": 1024, "Sk": 4096}
    packed = {"B": 1, "Hq": 8, "Hkv": 2, "TQ": 1024, "P": 1, "T": 4096}
    tiling = {name: value for name, value in varlen.plan().config.items() if name in fixed.plan().config}
    (expected,) = count(fixed.plan({**tiling, **config}), sizes)
    (found,) = count(varlen.plan(config), packed)
    for name in ("l2_bytes", "mma_flop", "exp2", "smem_bytes", "in_flight", "resident", "overlap"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.ctas in (expected.ctas, expected.ctas + 8)  # a tile more for each head: the host knows no lengths
    assert found.hbm_bytes == pytest.approx(expected.hbm_bytes, rel=0.01)


def test_sequences_whose_keys_fill_no_tile_wait_longer():
    plan = Target("fmha_varlen", "sm_90a").default()
    whole, cut = ({"B": 2, "Hq": 8, "Hkv": 8, "TQ": 512, "P": 1, "T": size} for size in (2 * 1024, 2 * 1023))
    (first,), (second,) = count(plan, whole), count(plan, cut)
    assert second.trips == first.trips + 1 and second.mma_flop == first.mma_flop
