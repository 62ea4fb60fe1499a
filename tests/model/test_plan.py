"""Steps and plans against the rules of dsv4-reference §5 and §7 written out token by token."""

from __future__ import annotations

import random

import pytest
import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.plan import Plan, frequencies, make_plan
from dsv4.runtime.model.schedule import schedule
from dsv4.runtime.model.step import Chunk, Step
from tests.model.tiny_model import SMALL

LAYERS = schedule(SMALL)
RING = 200


def planned(step: Step, cache: ContiguousCache) -> Plan:
    return make_plan(step, LAYERS, cache, frequencies(LAYERS, "cpu"))


def cache(**options: int) -> ContiguousCache:
    return ContiguousCache(SMALL, slots=4, positions_max=600, ring=RING, **options)  # type: ignore[arg-type]


CASES = {
    "decode": [(0, 0, 1), (1, 3, 1), (2, 126, 1), (3, 127, 1)],
    "drafts": [(2, 255, 2), (0, 2, 3)],
    "prefill": [(1, 0, 70)],
    "chunks": [(3, 61, 72), (1, 128, 1), (0, 250, 9), (2, 383, 1)],
    "one": [(0, 0, 1)],
}


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("name", CASES)
def test_rows(name: str, spare: int) -> None:
    case = CASES[name]
    room = cache(spare=spare)
    step = Step.of([Chunk(slot, first, list(range(length))) for slot, first, length in case], logits="all")
    plan = planned(step, room)
    token = 0
    for slot, first, length in case:
        for position in range(first, first + length):
            assert step.positions[token] == position
            assert plan.window_write[token] == slot * RING + position % RING
            window = [slot * RING + p % RING if p >= 0 else -1 for p in range(position - 127, position + 1)]
            assert plan.window_read[token].tolist() == window
            for ratio, entries in ((4, 150), (128, 4)):
                shared = plan.ratios[ratio]
                seen = [
                    slot * entries + e if ratio * (e + 1) <= position + 1 else -1 for e in range(step.reach // ratio)
                ]
                assert shared.read_rows[token].tolist() == seen
                assert shared.visible[token] == (position + 1) // ratio
                assert shared.compression.phase[token] == position % ratio
            token += 1
    assert plan.window_read.dtype == plan.ratios[4].read_rows.dtype == torch.int32


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ratio", [4, 128])
def test_compression(name: str, ratio: int, spare: int) -> None:
    case = CASES[name]
    room = cache(spare=spare)
    step = Step.of([Chunk(slot, first, list(range(length))) for slot, first, length in case])
    got = planned(step, room).ratios[ratio].compression
    span = 8 if ratio == 4 else 128
    ring, entries_a_slot = span + spare, 600 // ratio
    number = start = 0
    for slot, first, length in case:
        last = first + length - 1
        for entry in range(first // ratio, first // ratio + -(-length // ratio)):
            fresh, stored, row = [-1] * span, [-1] * span, -1
            if ratio * (entry + 1) - 1 <= last:
                row = slot * entries_a_slot + entry
                for place, p in enumerate(range(ratio * (entry + 1) - span, ratio * (entry + 1))):
                    if p >= first:
                        fresh[place] = start + p - first
                    elif p >= 0:
                        stored[place] = slot * ring + p % ring
            assert got.fresh[number].tolist() == fresh and got.stored[number].tolist() == stored
            assert got.entry_rows[number] == row
            number += 1
        kept = [slot * ring + p % ring if p > last - ring else -1 for p in range(first, last + 1)]
        assert got.state_rows[start : start + length].tolist() == kept
        start += length
    assert number == got.fresh.shape[0]


def test_no_row_is_written_twice() -> None:
    numbers = random.Random(0)
    for _ in range(20):
        chunks = [Chunk(slot, numbers.randrange(300), list(range(numbers.randrange(1, 73)))) for slot in (2, 0, 3)]
        plan = planned(Step.of(chunks), cache())
        written = [plan.window_write]
        for ratio in (4, 128):
            written += [plan.ratios[ratio].compression.entry_rows, plan.ratios[ratio].compression.state_rows]
        for rows in written:
            valid = rows[rows >= 0].tolist()
            assert len(valid) == len(set(valid))


def test_entries_are_visible_from_their_last_token_on() -> None:
    """p = 3 sees CSA entry 0, p = 127 sees HCA entry 0 and p = 126 sees none (dsv4-reference §7.1)."""
    for position, csa, hca in ((2, 0, 0), (3, 1, 0), (126, 31, 0), (127, 32, 1), (254, 63, 1), (255, 64, 2)):
        ratios = planned(Step.of([Chunk(0, position, [7])]), cache()).ratios
        assert [(ratios[m].read_rows >= 0).sum().item() for m in (4, 128)] == [csa, hca]


def test_padding_sequences_store_and_see_nothing() -> None:
    plan = planned(Step.of([Chunk(-1, 131, [1, 2, 3, 4, 5]), Chunk(1, 3, [6])]), cache())
    assert plan.window_write.tolist() == [-1] * 5 + [RING + 3]
    assert (plan.window_read[:5] == -1).all()
    for shared in plan.ratios.values():
        rows = shared.compression
        assert (shared.read_rows[:5] == -1).all() and (rows.state_rows[:5] == -1).all() and rows.state_rows[5] >= 0
    four = plan.ratios[4].compression
    assert four.entry_rows.tolist() == [-1, -1, 150] and (four.fresh[:2] == -1).all() and (four.stored[:2] == -1).all()


def test_shapes_depend_on_lengths_and_reach_alone() -> None:
    one = planned(Step.of([Chunk(0, 3, [1]), Chunk(1, 200, [2])], reach=512), cache())
    other = planned(Step.of([Chunk(2, 511, [1]), Chunk(-1, 0, [2])], reach=512), cache())
    for ratio in (4, 128):
        a, b = one.ratios[ratio], other.ratios[ratio]
        assert a.read_rows.shape == b.read_rows.shape == (2, 512 // ratio)
        assert a.compression.apart == b.compression.apart
        for name in ("phase", "fresh", "stored", "entry_rows", "state_rows"):
            assert getattr(a.compression, name).shape == getattr(b.compression, name).shape


def test_bad_steps() -> None:
    with pytest.raises(ContractError, match="chunk 1: found 0 tokens from position 5"):
        Step.of([Chunk(0, 0, [1]), Chunk(1, 5, [])])
    with pytest.raises(ContractError, match="found 1 tokens from position -1"):
        Step.of([Chunk(0, -1, [1])])
    with pytest.raises(ContractError, match="chunk 1: found slot 3 again"):
        Step.of([Chunk(3, 0, [1]), Chunk(3, 1, [1])])
    with pytest.raises(ContractError, match="reach: found 4; valid: 5 or more"):
        Step.of([Chunk(0, 4, [1])], reach=4)
    with pytest.raises(ContractError, match="reach: found 601; valid: at most 600"):
        planned(Step.of([Chunk(0, 600, [1])]), cache())
    with pytest.raises(ContractError, match="found 74 tokens of one sequence; valid: at most 73"):
        planned(Step.of([Chunk(0, 0, [1] * 74)]), cache())


def test_rows_of_logits() -> None:
    chunks = [Chunk(0, 0, [5, 6, 7]), Chunk(1, 9, [8])]
    assert Step.of(chunks).logit_rows.tolist() == [2, 3]
    assert Step.of(chunks, logits="all").logit_rows.tolist() == [0, 1, 2, 3]
    assert Step.of(chunks, logits="none").logit_rows.tolist() == []
    step = Step.of(chunks)
    assert step.tokens.tolist() == [5, 6, 7, 8] and step.sequence.tolist() == [0, 0, 0, 1]
    assert step.starts.tolist() == [0, 3, 4] and step.lengths == (3, 1) and step.reach == 10
    assert step.is_decode and not Step.of([Chunk(0, 0, [1] * 9)]).is_decode
