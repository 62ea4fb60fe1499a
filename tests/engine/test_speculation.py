"""Drafts of the MTP layer: the text, or its distribution, is as it is without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsv4.runtime.engine import acceptance, tick
from dsv4.runtime.engine.options import Request, Result, SamplingOptions
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.step import Chunk, Step
from tests.engine.small_engine import CONFIG, POSITIONS, alone, by_itself, engine, model, text

LONG = SamplingOptions(max_new_tokens=72)
EVEN = SamplingOptions(max_new_tokens=4, temperature=2.0, top_p=0.9)
"""Warm enough that many drafts are kept, by a draft layer that knows nothing."""
SEQUENCES = 240


def test_greedy_text_is_the_same() -> None:
    """72 tokens, over the ends of CSA and HCA entries."""
    drafted = alone(text(90), LONG, speculate=True)
    assert len(drafted.tokens) == 72 and drafted.tokens == alone(text(90), LONG).tokens
    assert drafted.drafts - drafted.accepted > 0, "some drafts were taken back"


def test_greedy_text_is_the_same_when_drafts_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """With drafts from the answer itself nearly every step gives two tokens; every fifth is spoilt."""
    expected = alone(text(90), LONG).tokens
    whole = torch.tensor([*text(90), *expected, 0, 0])
    draw = acceptance.draw

    def knowing(weights: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        if seed[0] != acceptance.DRAFT_STREAM:
            return draw(weights, seed, position)
        return torch.where(position % 5 == 0, 7, whole[position.clamp(max=len(whole) - 1)])

    monkeypatch.setattr(acceptance, "draw", knowing)
    result = by_itself(text(90), LONG, speculate=True)
    assert result.tokens == expected
    assert 72 - result.drafts == result.accepted + 1 or 72 - result.drafts == result.accepted
    assert 0.5 < result.accepted / result.drafts < 0.95


def test_drafts_are_those_of_the_mtp_layer() -> None:
    """What the engine drafts after each step is what the MTP layer says in one pass over the finished text."""
    running = engine(sequences=2, speculate=True, chunk=20)
    request = Request(text(45), replace(LONG, max_new_tokens=14))
    number = running.submit(request)
    running.submit(Request(text(30, 9), LONG))
    drafts: dict[int, int] = {}
    written: list[int] = []
    while running.result(number) is None:
        running.step()
        for mine in running._running:
            if mine.number == number and mine.draft is not None:
                drafts[len(mine.text)] = mine.draft
                written = list(mine.text)
    cache = ContiguousCache(CONFIG, positions_max=POSITIONS)
    step = Step.of([Chunk(0, 0, written[:-1])], logits="all", reach=POSITIONS)
    streams = model().forward(step, cache).streams
    logits = model().draft(streams, torch.tensor(written[1:]), step, cache).logits
    expected = logits.argmax(dim=-1).tolist()
    assert len(drafts) >= 7
    for length, draft in drafts.items():
        assert draft == expected[length - 2], f"the draft of token {length}"


def sampled(keep_all: bool, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    if keep_all:
        monkeypatch.setattr(acceptance, "accept", lambda draft, *_: (draft, torch.ones_like(draft, dtype=torch.bool)))
    requests = [Request(text(6), replace(EVEN, seed=1000 + seed)) for seed in range(SEQUENCES)]
    return engine(sequences=60, speculate=True, chunk=256, positions=16).generate(requests)


def score(results: list[Result]) -> float:
    """How much more often than the model says tokens are those that the draft layer favours, in standard deviations.

    For each token after the first, A is the set of tokens that drafts favour, q > p; the sum of [token in A] − p(A)
    over all tokens has mean 0 and variance Σ p(A) (1 − p(A)) exactly where tokens come by p.
    """
    cache = ContiguousCache(CONFIG, slots=len(results), positions_max=16)
    texts = [[*result.prompt, *result.tokens] for result in results]
    step = Step.of([Chunk(slot, 0, written) for slot, written in enumerate(texts)], logits="all")
    out = model().forward(step, cache)
    following = torch.tensor([token for written in texts for token in (*written[1:], 0)])
    drafted = model().draft(out.streams, following, step, cache).logits
    rows = out.logits.shape[0]
    options = (
        torch.full((rows,), EVEN.temperature),
        torch.zeros(rows, dtype=torch.int64),
        torch.full((rows,), EVEN.top_p),
    )
    p = acceptance.distribution(out.logits, *options, dtype=torch.float64).view(len(results), -1, CONFIG.vocab_size)
    q = acceptance.distribution(drafted, *options, dtype=torch.float64).view(p.shape)
    excess = variance = torch.zeros((), dtype=torch.float64)
    for place in range(
        7, len(texts[0])
    ):  # the token at place comes by p after place − 1, its draft by q after place − 2
        favoured = q[:, place - 2] > p[:, place - 1]
        chance = (p[:, place - 1] * favoured).sum(dim=-1)
        token = torch.tensor([written[place] for written in texts])
        excess = excess + (favoured.gather(1, token[:, None]).squeeze(1).double() - chance).sum()
        variance = variance + (chance * (1 - chance)).sum()
    return float(excess / variance.sqrt())


def test_sampled_text_keeps_its_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    results = sampled(keep_all=False, monkeypatch=monkeypatch)
    kept, drafts = sum(result.accepted for result in results), sum(result.drafts for result in results)
    assert 0.2 < kept / drafts < 0.9, f"{kept} of {drafts}: too few or too many for the test to mean anything"
    assert abs(score(results)) < 4


def test_keeping_every_draft_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(sampled(keep_all=True, monkeypatch=monkeypatch)) > 6


def test_a_longer_text_begins_like_a_shorter_one() -> None:
    warm = replace(LONG, temperature=1.0, max_new_tokens=9)
    whole = alone(text(10), warm, speculate=True).tokens
    for count in (1, 2, 5):
        assert alone(text(10), replace(warm, max_new_tokens=count), speculate=True).tokens == whole[:count]


def test_the_memory_of_drafts_has_a_scratch_row() -> None:
    memory = tick.DraftMemory(3, 10, torch.float32, "cpu")
    memory.weights[torch.tensor([-1, 0])] = 1.0
    assert memory.weights[:, 0].tolist() == [1, 0, 0, 1]
