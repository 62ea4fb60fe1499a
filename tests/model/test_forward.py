"""The forward pass agrees with itself: prefill, decoding, chunks cut anywhere, batches, padding, tokens taken back."""

from __future__ import annotations

import random

import pytest
import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.model.weights import map_weights
from dsv4.runtime.pool import PoolFormat
from dsv4.runtime.weight import Format
from tests.model.tiny_model import SMALL, TINY, Maker, prompt

DECODED = 264
"""Past the second HCA entry; the sweep goes on to 300."""
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 35, 36, 37, 126, 127, 128, 129, 131, 132, 255, 256, 257, 264)


class Trace:
    """Streams, logits and drafts of the tokens of one sequence, gathered from steps."""

    def __init__(self, model: Transformer, cache: ContiguousCache, tokens: list[int], slot: int = 0) -> None:
        self.model, self.cache, self.tokens, self.slot = model, cache, tokens, slot
        self.parts: list[tuple[torch.Tensor, ...]] = []
        self.position = 0

    def step(self, length: int) -> None:
        first, end = self.position, self.position + length
        step = Step.of([Chunk(self.slot, first, self.tokens[first:end])], logits="all")
        forward = self.model.forward(step, self.cache)
        following = torch.tensor([*self.tokens[first + 1 : end + 1], 0][:length])
        draft = self.model.draft(forward.streams, following, step, self.cache)
        self.parts.append((*forward, *draft))
        self.position = end

    def gathered(self) -> list[torch.Tensor]:
        return [torch.cat(each) for each in zip(*self.parts, strict=True)]


def assert_same(got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(SMALL, Maker(SMALL).model())


def decode(model: Transformer, length: int) -> list[torch.Tensor]:
    """Token by token, through a window of exactly 128 rows."""
    trace = Trace(model, ContiguousCache(SMALL, positions_max=length, ring=128), prompt(SMALL, 301))
    for _ in range(length):
        trace.step(1)
    return trace.gathered()


@pytest.fixture(scope="module")
def decoded(model: Transformer) -> list[torch.Tensor]:
    return decode(model, DECODED)


def check_prefill(model: Transformer, decoded: list[torch.Tensor], length: int) -> None:
    trace = Trace(model, ContiguousCache(SMALL, positions_max=length), prompt(SMALL, 301))
    trace.step(length)
    assert_same(trace.gathered(), [each[:length] for each in decoded])


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_equals_decoding(model: Transformer, decoded: list[torch.Tensor], length: int) -> None:
    check_prefill(model, decoded, length)


@pytest.mark.sweep
def test_prefill_equals_decoding_for_every_length(model: Transformer) -> None:
    decoded = decode(model, 300)
    for length in range(1, 301):
        check_prefill(model, decoded, length)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chunks_cut_anywhere(model: Transformer, decoded: list[torch.Tensor], seed: int) -> None:
    numbers, largest = random.Random(seed), 90
    cache = ContiguousCache(
        SMALL, slots=3, positions_max=DECODED, ring=127 + largest, spare=seed, page=[64, 53, 2][seed]
    )
    trace = Trace(model, cache, prompt(SMALL, 301), slot=seed)
    while trace.position < DECODED:
        trace.step(min(numbers.choice([1, 2, 3, 5, 17, 64, largest]), DECODED - trace.position))
    assert_same(trace.gathered(), decoded)


def test_batched_equals_alone(model: Transformer) -> None:
    """Sequences of different lengths, prefill and decoding mixed, one of them padding."""
    cache = ContiguousCache(SMALL, slots=4, positions_max=200)
    sequences = {3: prompt(SMALL, 140, 5), 0: prompt(SMALL, 37, 6), 2: prompt(SMALL, 9, 7)}
    cuts = {3: [100, 39, 1], 0: [1, 1, 35], 2: [3, 5, 1]}
    found: dict[int, list[torch.Tensor]] = {slot: [] for slot in sequences}
    for number in range(3):
        chunks = []
        for slot, tokens in sequences.items():
            first = sum(cuts[slot][:number])
            chunks.append(Chunk(slot, first, tokens[first : first + cuts[slot][number]]))
        chunks.insert(1, Chunk(-1, 5, [1, 2, 3]))
        forward = model.forward(Step.of(chunks, logits="all", reach=200), cache)
        starts = [sum(len(chunk.tokens) for chunk in chunks[:i]) for i in range(5)]
        for i, chunk in enumerate(chunks):
            if chunk.slot >= 0:
                found[chunk.slot].append(forward.streams[starts[i] : starts[i + 1]])
    for slot, tokens in sequences.items():
        alone = model.forward(Step.of([Chunk(0, 0, tokens)]), ContiguousCache(SMALL, positions_max=200))
        assert_same([torch.cat(found[slot])], [alone.streams])


def test_padding_writes_to_scratch_alone(model: Transformer) -> None:
    cache = ContiguousCache(SMALL, slots=2, positions_max=140)
    model.forward(Step.of([Chunk(-1, 0, prompt(SMALL, 140))]), cache)
    for layer in cache.layers():
        for pool in (layer.window, layer.compressed, layer.index):
            assert pool is None or not pool.data.view(pool.rows, -1)[:-1].any()
        for state in (layer.state, layer.index_state):
            assert state is None or not state[:-1].any()


def test_logits_are_those_of_the_rows_asked_for(model: Transformer) -> None:
    tokens = prompt(SMALL, 20)

    def logits(rows: str) -> torch.Tensor:
        cache = ContiguousCache(SMALL, positions_max=20)
        return model.forward(Step.of([Chunk(0, 0, tokens)], logits=rows), cache).logits  # type: ignore[arg-type]

    assert logits("none").shape == (0, SMALL.vocab_size)
    torch.testing.assert_close(logits("last"), logits("all")[-1:])


@pytest.mark.parametrize("drafts", [1, 3])
def test_rejected_tokens_leave_no_trace(model: Transformer, decoded: list[torch.Tensor], drafts: int) -> None:
    """Wrong tokens written after each step and taken back, across entries of both ratios."""
    length = 140
    cache = ContiguousCache(SMALL, positions_max=length + drafts, ring=140, spare=drafts)
    trace = Trace(model, cache, prompt(SMALL, 301))
    numbers = random.Random(drafts)
    for _ in range(11):
        trace.step(10)
        model.forward(Step.of([Chunk(0, trace.position, [7] * drafts)]), cache)  # taken back by the next step
    while trace.position < length:
        wrong = [numbers.randrange(SMALL.vocab_size) for _ in range(drafts)]
        right = trace.tokens[trace.position : trace.position + 1]
        step = Step.of([Chunk(0, trace.position, right + wrong)])
        rejected = model.forward(step, cache)
        model.draft(rejected.streams, step.tokens, step, cache)
        trace.step(min(drafts, length - trace.position))
    assert_same(trace.gathered(), [each[:length] for each in decoded])


def test_real_head_shapes() -> None:
    model = Transformer(TINY, Maker(TINY).model())
    tokens = prompt(TINY, 136)
    whole = Trace(model, ContiguousCache(TINY, positions_max=136), tokens)
    whole.step(136)
    parts = Trace(model, ContiguousCache(TINY, positions_max=136), tokens)
    for length in (125, 1, 1, 1, 1, 4, 3):
        parts.step(length)
    assert_same(parts.gathered(), whole.gathered())


REAL = TINY.replace(
    vocab_size=64,
    hidden_size=128,
    num_attention_heads=2,
    q_lora_rank=128,
    o_lora_rank=64,
    index_n_heads=4,
    index_topk=8,
    compress_ratios=(0, 4, 128, 0),
    num_hidden_layers=3,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    num_hash_layers=1,
)
"""Widths that all quantisers' blocks divide, and packed pages."""


@pytest.mark.parametrize(
    ("numerics", "dense", "routed", "kv", "index"),
    [
        (Numerics.OFFICIAL, Format.FP8_BLOCK, Format.MXFP4, PoolFormat.PLAIN, PoolFormat.PLAIN),
        (Numerics.OFFICIAL, Format.FP8_BLOCK, Format.NVFP4, PoolFormat.PLAIN, PoolFormat.PLAIN),
        (Numerics.ENGINE, Format.FP8_BLOCK, Format.MXFP4, PoolFormat.KV_FP8, PoolFormat.INDEX_FP4),
        (Numerics.ENGINE, Format.NVFP4, Format.NVFP4, PoolFormat.KV_FP8, PoolFormat.INDEX_FP8),
        (Numerics.ENGINE, Format.PLAIN, Format.PLAIN, PoolFormat.PLAIN, PoolFormat.PLAIN),
        (Numerics.EXACT, Format.FP8_BLOCK, Format.MXFP4, PoolFormat.PLAIN, PoolFormat.PLAIN),
    ],
)
def test_numerics_and_formats(
    numerics: Numerics, dense: Format, routed: Format, kv: PoolFormat, index: PoolFormat
) -> None:
    """Chunks equal the whole in every numerics; the arithmetic is float64, so that hardly a rounding goes two ways."""
    precision = Precision(numerics, torch.float64)
    dtype = torch.float32 if numerics is Numerics.EXACT else torch.bfloat16
    weights = Maker(REAL, 3, dtype=dtype, dense=dense, routed=routed).model()
    tokens = prompt(REAL, 133)

    def run(cuts: tuple[int, ...], model: Transformer) -> list[torch.Tensor]:
        cache = ContiguousCache(REAL, positions_max=136, precision=precision, kv=kv, index=index)
        trace = Trace(model, cache, tokens)
        for length in cuts:
            trace.step(length)
        return trace.gathered()

    model = Transformer(REAL, weights, numerics=numerics, wide=torch.float64)
    whole, parts = run((133,), model), run((126, 1, 1, 5), model)
    assert whole[0].dtype == precision.activation and whole[0].isfinite().all()
    for one, other in zip(parts, whole, strict=True):
        assert ((one - other).abs() <= 1e-9 * other.abs().max()).double().mean() > 0.999
    expanded = map_weights(weights, weight=lambda weight: weight.expand(torch.float64), tensor=lambda tensor: tensor)
    for one, other in zip(
        run((133,), Transformer(REAL, expanded, numerics=numerics, wide=torch.float64)), whole, strict=True
    ):
        assert torch.equal(one, other)


def test_packed_pages_hold_what_fq64_gives() -> None:
    """The official roundings with packed pages instead of FQ64 in plain ones: the same numbers."""
    precision = Precision(Numerics.OFFICIAL)
    model = Transformer(REAL, Maker(REAL, 4, dtype=torch.bfloat16).model(), numerics=Numerics.OFFICIAL)
    tokens = prompt(REAL, 130)
    found = []
    for kv, index in ((PoolFormat.PLAIN, PoolFormat.PLAIN), (PoolFormat.KV_FP8, PoolFormat.INDEX_FP4)):
        cache = ContiguousCache(REAL, positions_max=130, precision=precision, kv=kv, index=index)
        found.append(model.forward(Step.of([Chunk(0, 0, tokens)]), cache).streams)
    assert torch.equal(*found)


def test_models_that_cannot_be() -> None:
    weights = Maker(SMALL).model()
    with pytest.raises(ContractError, match="found 5 layers; valid: 4"):
        Transformer(SMALL.replace(num_hidden_layers=4, compress_ratios=(0, 0, 4, 128, 0)), weights)
    config = SMALL.replace(num_nextn_predict_layers=0, compress_ratios=(0, 0, 4, 128, 4))
    bare = Transformer(config, Maker(config).model())
    step, cache = Step.of([Chunk(0, 0, [1])]), ContiguousCache(config, positions_max=4)
    forward = bare.forward(step, cache)
    with pytest.raises(ContractError, match="the model has no MTP layer"):
        bare.draft(forward.streams, torch.tensor([2]), step, cache)


def test_a_step_without_sequences(model: Transformer) -> None:
    cache = ContiguousCache(SMALL, positions_max=4)
    forward = model.forward(Step.of([]), cache)
    assert forward.streams.shape == (0, 4, SMALL.hidden_size) and forward.logits.shape == (0, SMALL.vocab_size)
