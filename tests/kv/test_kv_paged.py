"""The paged cache under the real forward pass: the same numbers as the contiguous one, whatever happened before."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.pools import copy_rows
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.pages import read_rows, write_rows
from tests.model.tiny_model import SMALL, Maker, prompt

REAL_HEADS = SMALL.replace(head_dim=512, num_attention_heads=2, o_groups=2)
"""Packed pages hold this model's rows."""
POSITIONS = 384


def transformer(numerics: Numerics) -> Transformer:
    config = REAL_HEADS if numerics is Numerics.ENGINE else SMALL
    dtype = torch.float32 if numerics is Numerics.EXACT else torch.bfloat16
    return Transformer(config, Maker(config, dtype=dtype).model(), numerics=numerics)


MODEL = transformer(Numerics.EXACT)
TEXT = prompt(SMALL, POSITIONS)
OTHER = prompt(SMALL, POSITIONS, seed=2)


def paged(model: Transformer = MODEL, *, sequences: int = 2, block: int = 128, drafts: int = 1) -> PagedCache:
    kv, index = formats_for(model.precision.numerics, model.config)
    settings = CacheSettings(sequences=sequences, block=block, drafts=drafts, step_tokens=300, kv=kv, index=index)
    return PagedCache(CacheLayout.holding(model.config, settings, model.precision, POSITIONS))


def run(cache: PagedCache, chunks: list[Chunk], model: Transformer = MODEL) -> torch.Tensor:
    """The logits of all tokens of a step, whose chunks are appended before and settled after."""
    cache.append({chunk.slot: len(chunk.tokens) for chunk in chunks})
    out = model.forward(Step.of(chunks, logits="all", reach=POSITIONS), cache)
    cache.settle()
    return out.logits


def go_on(cache: PagedCache, slot: int, text: list[int], sizes: list[int]) -> torch.Tensor:
    """The logits of the next tokens of ``text``, in chunks of ``sizes``."""
    logits = []
    for size in sizes:
        first = cache.length(slot)
        logits.append(run(cache, [Chunk(slot, first, text[first : first + size])]))
    return torch.cat(logits)


@pytest.mark.parametrize(
    ("numerics", "block"),
    [(Numerics.EXACT, 128), (Numerics.EXACT, 256), (Numerics.OFFICIAL, 128), (Numerics.ENGINE, 128)],
)
def test_paged_is_contiguous_bit_for_bit(numerics: Numerics, block: int) -> None:
    """Chunks beyond the ring, decoding, both at once, the MTP layer too."""
    model = MODEL if numerics is Numerics.EXACT else transformer(numerics)
    cache = paged(model, block=block)
    kv, index = formats_for(numerics, model.config)
    assert (kv is PoolFormat.KV_FP8) == (numerics is Numerics.ENGINE)
    plain = ContiguousCache(
        model.config, slots=2, positions_max=POSITIONS, precision=model.precision, kv=kv, index=index
    )
    first, second = cache.open(), cache.open()
    done = {first: 0, second: 0}
    texts = {first: TEXT, second: OTHER}
    long = numerics is Numerics.EXACT
    for sizes in (
        {first: 190 if long else 131},
        {second: 3},
        {first: 60 if long else 1, second: 200 if long else 20},
        {first: 1, second: 1},
        {first: 2, second: 133 if long else 3},
    ):
        chunks = [Chunk(slot, done[slot], texts[slot][done[slot] : done[slot] + size]) for slot, size in sizes.items()]
        step = Step.of(chunks, logits="all", reach=POSITIONS)
        shifted = [texts[slot][done[slot] + 1 : done[slot] + size + 1] for slot, size in sizes.items()]
        following = torch.tensor([token for tokens in shifted for token in tokens])
        cache.append(sizes)
        got, expected = model.forward(step, cache), model.forward(step, plain)
        assert torch.equal(got.logits, expected.logits) and torch.equal(got.streams, expected.streams)
        drafted = model.draft(got.streams, following, step, cache).logits
        assert torch.equal(drafted, model.draft(expected.streams, following, step, plain).logits)
        cache.settle()
        done = {slot: length + sizes.get(slot, 0) for slot, length in done.items()}


def test_rejected_drafts_leave_no_trace() -> None:
    """From 123 to 132 every step has a draft that is taken back, across the ends of CSA and HCA entries."""
    model = Transformer(SMALL, Maker(SMALL, dtype=torch.float64).model(), wide=torch.float64)
    traces = []
    for wrong in (TEXT[300], TEXT[301], None):
        cache = paged(model)
        slot = cache.open()
        run(cache, [Chunk(slot, 0, TEXT[:123])], model)
        logits = []
        for position in range(123, 133):
            tokens = [TEXT[position]] if wrong is None else [TEXT[position], wrong]
            logits.append(run(cache, [Chunk(slot, position, tokens)], model)[0])
            cache.rollback(slot, position + 1)
        traces.append(torch.stack(logits))
    for other in traces[1:]:  # equal up to the order of float64 sums: tokens that share an expert are computed together
        torch.testing.assert_close(traces[0], other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 100, 128, 131, 256, 300])
def test_a_fork_is_as_if_fresh(length: int) -> None:
    """At any length, while the parent and a second child go on with other texts."""
    prefix = TEXT[:length]
    mine, others = [*prefix, *OTHER[:40]], [*prefix, *OTHER[60:100]]
    fresh = paged()
    slot = fresh.open()
    go_on(fresh, slot, prefix, [length])
    expected = go_on(fresh, slot, mine, [30, 1, 1, 2])

    cache = paged(sequences=3)
    parent = cache.open()
    go_on(cache, parent, prefix, [length])
    child, second = cache.fork(parent), cache.fork(parent)
    got = [go_on(cache, child, mine, [30])]
    go_on(cache, parent, TEXT, [20, 1])
    go_on(cache, second, others, [13])
    got.append(go_on(cache, child, mine, [1]))
    cache.free(parent)
    again = cache.open()
    go_on(cache, again, OTHER, [90])
    got.append(go_on(cache, child, mine, [1, 2]))
    assert torch.equal(torch.cat(got), expected)


def test_a_fork_of_what_was_taken_back() -> None:
    fresh = paged(drafts=3)
    slot = fresh.open()
    go_on(fresh, slot, TEXT, [130, 4])
    fresh.rollback(slot, 131)
    expected = go_on(fresh, slot, TEXT, [5])
    cache = paged(drafts=3)
    parent = cache.open()
    go_on(cache, parent, TEXT, [130, 4])
    child = cache.fork(parent, 131)
    assert cache.length(child) == 131 and cache.length(parent) == 134
    assert torch.equal(go_on(cache, child, TEXT, [5]), expected)
    with pytest.raises(ContractError, match="length of 130; valid: 131 to 134"):
        cache.fork(parent, 130)


def test_out_of_blocks_leaves_running_sequences_intact() -> None:
    settings = CacheSettings(sequences=3, block=128, drafts=1, step_tokens=300)
    cache = PagedCache(CacheLayout(SMALL, settings, MODEL.precision, blocks=3))
    calm = paged(sequences=3)
    first, second = cache.open(), cache.open()
    for each in (cache, calm):
        for slot in (first, second):
            if each is calm:
                assert calm.open() == slot
            run(each, [Chunk(slot, 0, TEXT[:125])])
    with pytest.raises(CacheFull, match="1 of 3 blocks free, 2 wanted"):
        run(cache, [Chunk(first, 125, TEXT[125:130]), Chunk(second, 125, OTHER[:8])])
    third = cache.open()
    with pytest.raises(CacheFull):
        run(cache, [Chunk(third, 0, OTHER[:129])])
    chunks = [Chunk(first, 125, TEXT[125:130]), Chunk(second, 125, OTHER[:3])]
    assert torch.equal(run(cache, chunks), run(calm, chunks))


def test_steps_that_a_cache_cannot_take() -> None:
    cache = paged()
    first, second = cache.open(), cache.open()
    assert cache.ring_tokens_max == 2 and cache.step_tokens_max == 300
    with pytest.raises(ContractError, match="400 tokens of long chunks in a step; valid: at most 300"):
        cache.append({first: 200, second: 200})
    assert cache.length(first) == 0
    cache.append({first: 200, second: 2})
    with pytest.raises(ContractError, match="not settled"):
        cache.append({second: 1})
    with pytest.raises(ContractError, match="not settled"):
        cache.fork(second)
    cache.settle()
    cache.append({second: 1})
    with pytest.raises(ContractError, match="layer: found 6; valid: 0 to 5"):
        cache.layer(6)
    with pytest.raises(ContractError, match="positions; valid: at most"):
        cache.reserve(first, 100_000)


def test_a_slot_freed_in_a_step_is_not_settled() -> None:
    """A step that failed: its sequence is dropped, the others go on."""
    cache = paged()
    first, second = cache.open(), cache.open()
    cache.append({first: 150, second: 150})
    cache.free(first)
    cache.settle()
    assert cache.open() == first and cache.length(first) == 0 and cache.length(second) == 150


@pytest.mark.parametrize("format", PoolFormat)
def test_rows_are_copied_byte_for_byte(format: PoolFormat) -> None:
    torch.manual_seed(0)
    width = 128 if format in (PoolFormat.INDEX_FP8, PoolFormat.INDEX_FP4) else 512
    pool = Pool.allocate(200, format=format, page=48, width=width, dtype=torch.bfloat16)
    rows = torch.tensor([0, 47, 48, 95, 130, 199])
    write_rows(pool, rows, torch.randn(6, width))
    before = pool.data.clone()
    values = read_rows(pool, rows)
    targets = torch.tensor([1, 49, 46, 140, 96, 198])
    copy_rows(pool, rows, targets)
    assert torch.equal(read_rows(pool, targets), values) and torch.equal(read_rows(pool, rows), values)
    copy_rows(pool, torch.tensor([2] * 6), targets)
    assert torch.equal(pool.data.view(torch.uint8), before.view(torch.uint8)), "bytes of other rows were touched"


def test_formats_and_dtypes_follow_the_numerics() -> None:
    cache = paged(transformer(Numerics.ENGINE))
    layer = cache.layer(2)
    assert layer.window.format is PoolFormat.KV_FP8 and layer.window.data.dtype == torch.uint8
    assert layer.index is not None and layer.index.format is PoolFormat.INDEX_FP8
    assert layer.state is not None and layer.state.dtype == torch.float32
    wide = Precision(Numerics.EXACT, torch.float64)
    double = PagedCache(CacheLayout(SMALL, CacheSettings(), wide, 1))
    assert double.layer(2).window.data.dtype == torch.float64
    assert PagedCache.within(SMALL, CacheSettings(), 20 << 20).layer(0).window.data.dtype == torch.float32
