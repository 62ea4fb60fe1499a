"""Slots, blocks and lengths: all or nothing, copy on write, and what can be taken back."""

from __future__ import annotations

import copy

import pytest

from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv.ledger import BlockCopy, Ledger


def ledger(blocks: int = 6, slots: int = 3, drafts: int = 1, positions_max: int = 1024) -> Ledger:
    return Ledger(slots=slots, blocks=blocks, block=128, drafts=drafts, positions_max=positions_max)


def snapshot(book: Ledger) -> dict[str, object]:
    return copy.deepcopy({"open": book._open, "slots": book._free_slots, "blocks": vars(book.blocks)})


def test_blocks_come_with_tokens_and_go_back() -> None:
    book = ledger()
    slot = book.open()
    assert book.append({slot: 128}) == [] and book.free_blocks == 5
    book.append({slot: 1})
    assert book.free_blocks == 4 and book.holding(slot).length == 129
    book.free(slot)
    assert book.free_blocks == 6 and book.free_slots == 3


def test_out_of_blocks_changes_nothing() -> None:
    book = ledger(blocks=3)
    first, second = book.open(), book.open()
    book.append({first: 200})
    before = snapshot(book)
    with pytest.raises(CacheFull, match=r"found 1 of 3 blocks free, 2 wanted"):
        book.append({first: 57, second: 1})
    assert snapshot(book) == before
    book.append({first: 56, second: 1})
    assert book.free_blocks == 0


def test_out_of_slots_changes_nothing() -> None:
    book = ledger(slots=1)
    slot = book.open()
    book.append({slot: 5})
    before = snapshot(book)
    with pytest.raises(CacheFull, match="all 1 slots"):
        book.open()
    with pytest.raises(CacheFull):
        book.fork(slot, 5)
    assert snapshot(book) == before


def test_reserved_blocks_are_there_when_tokens_come() -> None:
    book = ledger(blocks=4)
    slot, other = book.open(), book.open()
    book.reserve({slot: 300})
    assert book.free_blocks == 1 and book.holding(slot).length == 0
    book.append({other: 128})
    with pytest.raises(CacheFull):
        book.append({other: 1})
    book.append({slot: 300})
    assert len(book.holding(slot).blocks) == 3


def test_more_positions_than_a_sequence_may_have() -> None:
    book = ledger(positions_max=130)
    slot = book.open()
    book.append({slot: 130})
    with pytest.raises(ContractError, match="131 positions; valid: at most 130"):
        book.append({slot: 1})
    assert book.holding(slot).length == 130


def test_a_shared_block_is_copied_by_the_first_to_write() -> None:
    book = ledger(drafts=2)
    parent = book.open()
    book.append({parent: 200})
    child = book.fork(parent, 200)
    assert book.free_blocks == 4 and book.holding(child).blocks == book.holding(parent).blocks
    shared = book.holding(parent).blocks[1]
    copies = book.append({child: 1})
    assert copies == [BlockCopy(shared, book.holding(child).blocks[1])] and book.free_blocks == 3
    assert book.append({parent: 1}) == []
    assert book.holding(parent).blocks[0] == book.holding(child).blocks[0]
    book.free(parent)
    assert book.free_blocks == 4, "the first block is the child's still"


def test_two_writers_of_one_block_in_one_step_need_one_copy() -> None:
    book = ledger(blocks=2)
    parent = book.open()
    book.append({parent: 100})
    child = book.fork(parent, 100)
    copies = book.append({parent: 1, child: 1})
    assert len(copies) == 1 and book.free_blocks == 0
    assert book.holding(parent).blocks != book.holding(child).blocks


def test_a_copy_counts_when_blocks_run_out() -> None:
    book = ledger(blocks=1)
    parent = book.open()
    book.append({parent: 100})
    child = book.fork(parent, 100)
    before = snapshot(book)
    with pytest.raises(CacheFull, match="0 of 1 blocks free, 1 wanted"):
        book.append({child: 1})
    assert snapshot(book) == before


def test_rolled_back_into_a_shared_block() -> None:
    """What the parent writes again must not reach the child, whose history it is."""
    book = ledger(drafts=2)
    parent = book.open()
    book.append({parent: 129})
    child = book.fork(parent, 129)
    book.rollback(parent, 127)
    copies = book.append({parent: 2})
    assert len(copies) == 1, "the first block holds tokens of both, the second nothing of the parent"
    assert not set(book.holding(parent).blocks) & set(book.holding(child).blocks)


def test_only_drafts_can_be_taken_back() -> None:
    book = ledger(drafts=2)
    slot = book.open()
    book.append({slot: 10})
    book.rollback(slot, 9)
    book.rollback(slot, 8)
    with pytest.raises(ContractError, match="length of 7; valid: 8 to 8"):
        book.rollback(slot, 7)
    with pytest.raises(ContractError, match="length of 9"):
        book.rollback(slot, 9)
    book.append({slot: 3})
    book.rollback(slot, 9)
    with pytest.raises(ContractError):
        book.fork(slot, 8)
    assert book.fork(slot, 9) >= 0


@pytest.mark.parametrize("wrong", [{9: 1}, {0: 0}, {0: -3}])
def test_wrong_appends(wrong: dict[int, int]) -> None:
    book = ledger()
    assert book.open() == 0
    before = snapshot(book)
    with pytest.raises(ContractError, match="cache: slot"):
        book.append(wrong)
    assert snapshot(book) == before


def test_a_freed_slot_holds_nothing() -> None:
    book = ledger()
    slot = book.open()
    book.free(slot)
    for use in (lambda: book.free(slot), lambda: book.append({slot: 1}), lambda: book.rollback(slot, 0)):
        with pytest.raises(ContractError, match="holds no sequence"):
            use()
