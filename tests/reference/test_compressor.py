"""Compressed entries against the formula of dsv4-reference §5 written out entry by entry, cut into chunks anywhere."""

from __future__ import annotations

import math
import random
from itertools import chain

import pytest
import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.compressor import Compression, compressor, pooled
from dsv4.runtime.reference.hadamard import hadamard
from dsv4.runtime.reference.pages import read_rows
from dsv4.runtime.reference.quantize import fake_quantize_mxfp4
from dsv4.runtime.reference.rope import rope_frequencies, rope_table, rotate

F64 = torch.float64
FREQUENCIES = rope_frequencies(1e4, 64)


def by_hand(kv: torch.Tensor, score: torch.Tensor, ape: torch.Tensor, ratio: int, width: int) -> list[torch.Tensor]:
    """The pooled entries of a whole sequence, before the norm."""
    entries = []
    for e in range(kv.shape[0] // ratio):
        z = torch.zeros(width, dtype=F64)
        for channel in range(width):
            members = []
            if ratio == 4:
                for p in range(4 * e - 4, 4 * e):
                    if p >= 0:
                        members.append((score[p, channel] + ape[p % 4, channel], kv[p, channel]))
            offset = width if ratio == 4 else 0
            for p in range(ratio * e, ratio * e + ratio):
                members.append((score[p, offset + channel] + ape[p % ratio, offset + channel], kv[p, offset + channel]))
            weights = [math.exp(gate) for gate, _ in members]
            z[channel] = sum(w * value for w, (_, value) in zip(weights, members, strict=True)) / sum(weights)
        entries.append(z)
    return entries


def finished(z: torch.Tensor, norm: torch.Tensor, position: int) -> torch.Tensor:
    row = norm * z / (z.square().mean() + 1e-6).sqrt()
    return rotate(row[None], rope_table(torch.tensor([position]), FREQUENCIES, dtype=F64), dtype=F64)[0]


class Sequence:
    """One sequence's pool and state; ``feed`` runs the compressor on its next tokens."""

    def __init__(self, ratio: int, width: int, capacity: int, spare: int = 0) -> None:
        self.ratio, self.width = ratio, width
        self.factor = 2 if ratio == 4 else 1
        self.ring = self.factor * ratio + spare
        self.pool = Pool.allocate(capacity, page=4, width=width, dtype=F64)
        self.state = torch.full((self.ring + 1, 2 * self.factor * width), math.nan, dtype=F64)
        self.position = 0

    def feed(self, kv: torch.Tensor, score: torch.Tensor, ape: torch.Tensor, norm: torch.Tensor, **options) -> None:  # type: ignore[no-untyped-def]
        m, span, first, length = self.ratio, self.factor * self.ratio, self.position, kv.shape[0]
        last = first + length - 1
        entries = [first // m + i for i in range(-(-length // m))]
        fresh, stored, rows = [], [], []
        for e in entries:
            complete = m * (e + 1) - 1 <= last
            members = range(m * (e + 1) - span, m * (e + 1))
            fresh.append([p - first if complete and p >= first else -1 for p in members])
            stored.append([p % self.ring if complete and 0 <= p < first else -1 for p in members])
            rows.append(e if complete else -1)
        positions = range(first, first + length)
        kept = [p % self.ring if p > last - self.ring else -1 for p in positions]
        numbers = [[p % m for p in positions], list(chain(*fresh)), list(chain(*stored)), rows, kept]
        phase, flat_fresh, flat_stored, *rest = (torch.tensor(each, dtype=torch.int64) for each in numbers)
        shape = (len(entries), span)
        plan = Compression(phase, flat_fresh.view(shape), flat_stored.view(shape), *rest)
        table = rope_table(torch.tensor(entries, dtype=torch.int64) * m, FREQUENCIES, dtype=F64)
        compressor(kv, score, ape, norm, table, self.state, self.pool, plan, dtype=F64, **options)
        self.position += length


def problem(ratio: int, width: int, length: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(ratio * length)
    channels = width * (2 if ratio == 4 else 1)
    return (
        torch.randn(length, channels, dtype=F64),
        torch.randn(length, channels, dtype=F64) * 2,
        torch.randn(ratio, channels, dtype=F64),
        1 + torch.randn(width, dtype=F64) * 0.2,
    )


@pytest.mark.parametrize(("ratio", "length"), [(4, 3), (4, 4), (4, 29), (128, 127), (128, 128), (128, 300)])
def test_whole_sequence(ratio: int, length: int) -> None:
    width = 66  # 64 of them rotate
    kv, score, ape, norm = problem(ratio, width, length)
    sequence = Sequence(ratio, width, 100)
    sequence.feed(kv, score, ape, norm)
    expected = by_hand(kv, score, ape, ratio, width)
    assert len(expected) == length // ratio
    got = read_rows(sequence.pool, torch.arange(100), dtype=F64)
    for e, z in enumerate(expected):
        torch.testing.assert_close(got[e], finished(z, norm, e * ratio), rtol=0, atol=1e-12)
    assert not got[len(expected) :].any()


@pytest.mark.parametrize(("ratio", "length", "spare"), [(4, 61, 0), (4, 61, 3), (128, 400, 0), (128, 400, 5)])
def test_chunks_cut_anywhere_give_the_same_entries(ratio: int, length: int, spare: int) -> None:
    kv, score, ape, norm = problem(ratio, 64, length)
    whole = Sequence(ratio, 64, 100)
    whole.feed(kv, score, ape, norm)
    numbers = random.Random(spare)
    for _ in range(6):
        cut = Sequence(ratio, 64, 100, spare)
        while cut.position < length:
            start = cut.position
            end = min(length, start + numbers.choice([1, 1, 2, 3, 5, 11, 127, 128, 129]))
            cut.feed(kv[start:end], score[start:end], ape, norm)
        everything = torch.arange(length // ratio)
        torch.testing.assert_close(
            read_rows(cut.pool, everything, dtype=F64), read_rows(whole.pool, everything, dtype=F64), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("ratio", [4, 128])
def test_rejected_tokens_are_taken_back(ratio: int) -> None:
    """With spare rows in the ring, going back by as many tokens and writing others leaves no trace."""
    kv, score, ape, norm = problem(ratio, 64, 300)
    spare = 4
    expected, tried = Sequence(ratio, 64, 100), Sequence(ratio, 64, 100, spare)
    expected.feed(kv, score, ape, norm)
    for start in range(0, 300, 3):
        wrong = torch.randn(spare + 1, kv.shape[1], dtype=F64)
        tried.feed(wrong, wrong, ape, norm)
        tried.position = start
        tried.feed(kv[start : start + 3], score[start : start + 3], ape, norm)
    rows = torch.arange(300 // ratio)
    torch.testing.assert_close(
        read_rows(tried.pool, rows, dtype=F64), read_rows(expected.pool, rows, dtype=F64), rtol=0, atol=1e-12
    )


def test_sanity_example() -> None:
    """Equal gates, A = t, B = 100 + t: entry 0 is 101.5, entry 1 is 53.5 (dsv4-reference §5.2)."""
    values = torch.tensor([[[float(t)], [100.0 + t]] for t in range(8)])  # [t, half, 1]
    first = pooled(values[:4, 1][None], torch.zeros(1, 4, 1), torch.ones(1, 4, dtype=torch.bool))
    both = torch.cat((values[:4, 0], values[4:, 1]))[None]
    second = pooled(both, torch.zeros(1, 8, 1), torch.ones(1, 8, dtype=torch.bool))
    assert first.item() == 101.5 and second.item() == 53.5
    sequence = Sequence(4, 64, 10)
    kv = torch.cat((torch.arange(8.0).repeat(64, 1).T, 100 + torch.arange(8.0).repeat(64, 1).T), dim=1).to(F64)
    sequence.feed(kv, torch.zeros_like(kv), torch.zeros(4, 128, dtype=F64), torch.ones(64, dtype=F64))
    got = read_rows(sequence.pool, torch.arange(2), dtype=F64)
    for e, mean in ((0, 101.5), (1, 53.5)):
        z = torch.full((64,), mean, dtype=F64)
        torch.testing.assert_close(got[e], finished(z, torch.ones(64, dtype=F64), 4 * e), rtol=0, atol=1e-12)


def test_state_holds_the_score_with_ape() -> None:
    kv, score, ape, norm = problem(4, 64, 6)
    sequence = Sequence(4, 64, 10)
    sequence.feed(kv, score, ape, norm)
    for p in range(6):
        torch.testing.assert_close(sequence.state[p, :128], kv[p])
        torch.testing.assert_close(sequence.state[p, 128:], score[p] + ape[p % 4])
    assert sequence.state[6:8].isnan().all()


def test_indexer_keys_are_transformed_and_rounded() -> None:
    kv, score, ape, norm = problem(4, 128, 8)
    plain, rounded = Sequence(4, 128, 10), Sequence(4, 128, 10)
    plain.feed(kv, score, ape, norm)
    rounded.feed(kv, score, ape, norm, rotate_hadamard=True, fake="fp4")
    rows = torch.arange(2)
    expected = fake_quantize_mxfp4(hadamard(read_rows(plain.pool, rows, dtype=F64)))
    torch.testing.assert_close(read_rows(rounded.pool, rows, dtype=F64), expected, rtol=0, atol=1e-12)


def test_stages_are_rounded_one_after_another() -> None:
    kv, score, ape, norm = problem(4, 128, 8)
    staged = Sequence(4, 128, 10)
    staged.feed(kv, score, ape, norm, stage_dtype=torch.bfloat16, fake="none")
    got = read_rows(staged.pool, torch.arange(2), dtype=F64)
    for e, z in enumerate(by_hand(kv, score, ape, 4, 128)):
        row = z.bfloat16().double()
        row = (norm * row / (row.square().mean() + 1e-6).sqrt()).bfloat16()
        row = rotate(row[None], rope_table(torch.tensor([4 * e]), FREQUENCIES, dtype=F64), dtype=F64)[0]
        assert torch.equal(got[e], row.double())


def test_no_tokens_and_no_entries() -> None:
    _, _, ape, norm = problem(4, 64, 1)
    sequence = Sequence(4, 64, 10)
    none = torch.zeros(0, 128, dtype=F64)
    sequence.feed(none, none, ape, norm)
    assert not sequence.pool.data.any() and sequence.state.isnan().all()
    values, logits = torch.randn(2, 8, 5), torch.randn(2, 8, 5)
    assert not pooled(values, logits, torch.zeros(2, 8, dtype=torch.bool)).any()
