"""Terms of the cost model that came from sweeps of whole spaces: CTAs that the chip starts, instructions that nothing
hides, loads that registers keep from being under way, work that one CTA is left with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsv4.tuner.cost.counts import LaunchCounts, count
from dsv4.tuner.cost.model import Coefficients, Prediction, predict, rates
from dsv4.tuner.target import Target

CHIP = rates("sm_90a")
QUANTIZE = Target("quantize", "sm_90a", dims={"K": 4096})
SWIGLU = Target("swiglu_quant", "sm_90a")


def one(target: Target, sizes: dict[str, int], **config) -> LaunchCounts:
    (counts,) = count(target.planner().plan({**target.default().config, **config}), sizes)
    return counts


def predicted(*launches: LaunchCounts) -> Prediction:
    return predict(launches, CHIP, Coefficients())


def test_a_grid_of_small_ctas_is_bound_by_how_fast_the_chip_starts_them():
    small = one(QUANTIZE, {"T": 8192}, row_parts=32, threads_per_part=32, rows_per_cta=1)
    assert small.ctas == 32 * 8192
    found = predicted(small)
    assert found.bound == "ctas" and found.us == pytest.approx(small.ctas / CHIP.ctas, rel=0.1)
    assert predicted(replace(small, ctas=small.ctas // 8)).us < 0.5 * found.us


def test_instructions_follow_the_loads_where_all_are_loaded_at_once():
    counts = one(QUANTIZE, {"T": 64})
    assert counts.in_flight is None
    alone, more = (predicted(replace(counts, of_a_thread=number)).us for number in (100, 1100))
    assert more - alone == pytest.approx(1000 * Coefficients().instruction_cycles / CHIP.cycles, rel=1e-3)
    looping = replace(counts, in_flight=1e6)  # a pipeline hides most of them under its limits
    less, same = (predicted(replace(looping, of_a_thread=number)).us for number in (100, 200))
    assert 0 < same - less < 0.3 * 100 * Coefficients().instruction_cycles / CHIP.cycles


def test_the_issue_slots_do_not_take_the_chains_instructions_a_second_time():
    counts = one(QUANTIZE, {"T": 64})
    own_us = counts.of_a_thread * Coefficients().instruction_cycles / CHIP.cycles
    slot_us = counts.share / (CHIP.instructions * Coefficients().issue_share)

    def issue_us(share: float) -> float:
        return predicted(replace(counts, instructions=share * own_us / slot_us)).parts["issue"]

    assert issue_us(0.5) == 0 and issue_us(3.0) == pytest.approx(2 * own_us)


def test_of_few_tokens_most_warps_leave_at_once_and_each_takes_as_long():
    choose = Target("router_choose", "sm_90a")
    one_token, many = one(choose, {"T": 1, "S": 1}), one(choose, {"T": 256, "S": 1})
    assert one_token.of_a_thread == many.of_a_thread
    assert many.instructions == pytest.approx(256 * one_token.instructions)


def test_logits_that_a_thread_does_not_hold_are_read_in_a_loop():
    sample = Target("sample", "sm_90a", dims={"V": 129280})
    few, many = one(sample, {"R": 1}), one(sample, {"R": 64})
    assert few.in_flight == 0 and many.in_flight == 64 * 512
    assert few.of_a_thread == 720 + 44 * 16 and many.of_a_thread == 720 + 27 * 128


@pytest.mark.parametrize(
    ("target", "config", "trips"),
    [
        (QUANTIZE, {"row_parts": 4, "threads_per_part": 128}, 1),
        (QUANTIZE, {"row_parts": 1, "threads_per_part": 64}, 2),
        (SWIGLU, {"row_parts": 2, "threads_per_part": 128}, 1),
        (SWIGLU, {"row_parts": 2, "threads_per_part": 32}, 3),
    ],
)
def test_few_registers_make_loads_wait_for_one_another(target, config, trips):
    assert one(target, {"T": 64}, rows_per_cta=1, **config).trips == trips


def test_the_routers_last_cta_has_the_more_to_add_up_the_more_ctas_share_the_columns():
    router = Target("router", "sm_90a")
    few, many = (one(router, {"T": 16}, k_splits=splits, warps=8, opt_level=2) for splits in (4, 8))
    assert many.cycles - few.cycles == 4 * 4 * router.default().dims["E"] * 16 / 64
    assert one(router, {"T": 16}, k_splits=4, warps=4).trips > few.trips  # more tokens a warp, one after another


def test_of_decoding_sequences_few_complete_an_entry():
    target = Target("compressor", "sm_90a", dims={"m": 128, "D": 512})
    few, more = (count(target.default(), {"T": tokens})[0] for tokens in (1, 64))
    rows = 64 * 128 * 512 * 8  # what 64 entries would be made of, in f32
    assert more.hbm_bytes < 0.1 * rows and more.of_a_thread == few.of_a_thread
    assert more.instructions / few.instructions == pytest.approx((8 + 64) / 16)  # most CTAs leave at once
    assert more.ctas > 2 * more.slots and more.waves == 1  # and hold no place of those that stay
    assert more.share <= 1 / 64


def test_a_loops_own_cycles_lie_under_what_its_bytes_take():
    target = Target("router_logits", "sm_90a", dims={"d": 4096, "E": 256})
    (few,) = count(target.space().plan({"tile_n": 16, "stages": 2, "opt_level": 3}), {"T": 256, "S": 1})
    (many,) = count(target.space().plan({"tile_n": 16, "stages": 6, "opt_level": 3}), {"T": 256, "S": 1})
    chip, more = rates("sm_90a"), replace(few, loop_cycles=2 * few.loop_cycles)
    late, early = predict([few], chip, Coefficients()), predict([many], chip, Coefficients())
    assert late.bound == "in_flight" and early.bound == "serial"
    assert predict([more], chip, Coefficients()).us < 1.3 * late.us
    assert predict([replace(many, loop_cycles=2 * many.loop_cycles)], chip, Coefficients()).us > 1.3 * early.us


def test_an_idle_memory_answers_sooner_than_a_busy_one():
    target = Target("router_logits", "sm_90a", dims={"d": 4096, "E": 256})
    (idle,) = count(target.space().plan({"tile_n": 16, "stages": 2, "opt_level": 3}), {"T": 256, "S": 1})
    chip, c = rates("sm_90a"), Coefficients()
    steps = idle.l2_bytes / (idle.in_flight * idle.ctas)
    assert predict([idle], chip, c).parts["in_flight"] == pytest.approx(steps * c.trip_us, rel=0.1)
    busy = replace(idle, hbm_bytes=steps * c.latency_us * chip.hbm_bytes * c.hbm_share)
    assert predict([busy], chip, c).parts["in_flight"] == pytest.approx(steps * c.latency_us)


def test_roles_share_a_pass_and_the_longer_of_their_time_and_of_a_stages_counts():
    few, many = Target("mhc_pre", "sm_90a", dims={"d": 7168}), Target("mhc_pre", "sm_90a", dims={"d": 4096})
    roles = one(many, {"T": 8192})
    assert many.default().config["mixers"] == 8 and roles.turns == 74
    assert roles.of_a_thread == 700  # what a projecting warp has before its passes; they lie in loop_cycles
    busy = roles.instructions / (roles.ctas * 20)  # a warp's, on the average over 20 of a CTA
    assert 0.4 * 74 * (167 + 396) < busy < 0.5 * 74 * (167 + 396) + 700
    staged = [one(many, {"T": 8192}, stages=stages).loop_cycles for stages in (2, 4)]
    assert staged[0] == pytest.approx(2 * staged[1], rel=0.01)
    alone = one(few, {"T": 8192})  # comb is solved by the warp that owns, so that its passes wait
    assert alone.loop_cycles > 1.5 * (2 * staged[1]) and one(many, {"T": 16}).loop_cycles == 0


def test_an_lm_head_has_no_comb_to_wait_for():
    pre, head = (one(Target(op, "sm_90a"), {"T": 16}) for op in ("mhc_pre", "mhc_head"))
    assert pre.cycles == 3700 and head.cycles == 0 and head.mma_sync_flop < pre.mma_sync_flop / 2


def test_lengths_even_out_among_the_queries_of_a_cta_but_not_below_the_longest():
    target = Target("sparse_attention_decode", "sm_90a", variant={"extra": "rows"})
    sizes = {"Q": 1, "K0": 128, "K1": 1024}
    full, half = ({**sizes, "B": 64}, {**sizes, "B": 64, "mean1": 512})
    assert one(target, full).mma_flop == one(target, half).mma_flop  # as long as the longest
    assert one(target, half).hbm_bytes < 0.7 * one(target, full).hbm_bytes
    many, less = ({**sizes, "B": 528}, {**sizes, "B": 528, "mean1": 512})
    assert one(target, less).mma_flop == pytest.approx(10 / 18 * one(target, many).mma_flop)


def test_ctas_of_padding_start_and_do_nothing():
    target = Target("quantize", "sm_90a", variant={"format": "nvfp4", "scale_layout": "swizzled_128x4"})
    few, all_rows = one(target, {"T": 1}), one(target, {"T": 128})
    assert few.ctas == all_rows.ctas and few.instructions < all_rows.instructions / 50


def test_few_routes_are_ranked_not_counted():
    target = Target("expert_offsets", "sm_90a")
    ranked, counted = one(target, {"T": 64, "SP": 4096}), one(target, {"T": 65, "SP": 4096})
    assert ranked.instructions < counted.instructions and ranked.syncs < counted.syncs
    assert one(target, {"T": 64, "SP": 4096}, ranked_routes=0).syncs == counted.syncs
