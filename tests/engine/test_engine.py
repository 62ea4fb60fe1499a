"""Text from the engine: the forward pass's own, whatever the batch, the chunks and the order of arrival."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from dsv4.runtime.engine.device import device_of
from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, SamplingOptions
from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings
from dsv4.runtime.model.transformer import Transformer
from tests.engine.small_engine import CONFIG, POSITIONS, alone, engine, model, plain_text, text

GREEDY = SamplingOptions(max_new_tokens=10)
WARM = SamplingOptions(max_new_tokens=8, temperature=0.9, top_k=40, top_p=0.95, seed=11)


@pytest.mark.parametrize("options", [GREEDY, WARM])
def test_the_text_is_the_forward_pass(options: SamplingOptions) -> None:
    assert alone(text(37), options).tokens == tuple(plain_text(text(37), options))


def test_batched_is_alone() -> None:
    """Different lengths and options, more than the cache has slots for, some decoding while others begin."""
    lengths = (1, 17, 128, 130, 5)
    options = [
        replace(WARM if number % 2 else GREEDY, max_new_tokens=4 + 2 * number, seed=number)
        for number in range(len(lengths))
    ]
    requests = [
        Request(text(length, seed), each) for seed, (length, each) in enumerate(zip(lengths, options, strict=True))
    ]
    results = engine(sequences=3, chunk=50).generate(requests)
    for request, result in zip(requests, results, strict=True):
        assert result.tokens == alone(request.prompt, request.options).tokens
        assert len(result.tokens) == request.options.max_new_tokens and result.finish == "length"
        assert result.prompt == tuple(request.prompt)


@pytest.mark.parametrize("chunk", [1, 3, 64, 100, 129])
def test_chunks_of_any_size(chunk: int) -> None:
    length = 23 if chunk < 10 else 201
    assert alone(text(length), GREEDY, chunk=chunk).tokens == alone(text(length), GREEDY).tokens


def test_chunks_cut_at_random() -> None:
    """The chunk is changed between steps, so that cuts fall anywhere."""
    cuts = random.Random(4)
    whole = alone(text(210), GREEDY, speculate=True).tokens
    for _ in range(2):
        running = engine(sequences=1, speculate=True)
        number = running.submit(Request(text(210), GREEDY))
        while not running.is_idle:
            running._chunk = cuts.randrange(1, 90)
            running.step()
        result = running.result(number)
        assert result is not None and result.tokens == whole


def test_a_seed_gives_the_same_text_in_any_company() -> None:
    mine = Request(text(9), replace(WARM, temperature=1.3, top_k=0, top_p=1.0, seed=-5))
    others = [Request(text(20 + number, number), replace(WARM, seed=number)) for number in range(4)]
    for speculate in (False, True):
        first = engine(speculate=speculate).generate([mine])[0].tokens
        last = engine(speculate=speculate, chunk=16).generate([*others, mine])[-1].tokens
        middle = engine(speculate=speculate, sequences=6).generate([*others[:2], mine, *others[2:]])[2].tokens
        assert first == last == middle
    other_seed = replace(mine, options=replace(mine.options, seed=6))
    assert engine().generate([other_seed])[0].tokens != engine().generate([mine])[0].tokens


def test_stop_tokens_end_the_text_and_are_left_out() -> None:
    whole = alone(text(20), replace(GREEDY, max_new_tokens=16)).tokens
    stop = whole[7]
    for speculate in (False, True):
        options = replace(GREEDY, max_new_tokens=16, stop_tokens=frozenset({stop}))
        result = alone(text(20), options, speculate=speculate)
        assert result.tokens == whole[: whole.index(stop)] and result.finish == "stop"


@pytest.mark.parametrize("speculate", [False, True])
def test_the_text_ends_where_the_cache_does(speculate: bool) -> None:
    result = alone(text(120), replace(GREEDY, max_new_tokens=100), positions=128, speculate=speculate)
    assert len(result.tokens) == 9 and result.finish == "length"
    assert result.tokens == alone(text(120), replace(GREEDY, max_new_tokens=9)).tokens


def test_tokens_are_told_as_they_come() -> None:
    told: dict[int, list[int]] = {0: [], 1: []}
    running = engine(sequences=2)
    numbers = [running.submit(Request(text(5 + each), GREEDY, told[each].append)) for each in (0, 1)]
    running.step()
    assert [len(each) for each in told.values()] == [1, 1] and running.result(numbers[0]) is None
    while not running.is_idle:
        running.step()
    for number, each in zip(numbers, told.values(), strict=True):
        result = running.result(number)
        assert result is not None and list(result.tokens) == each
    assert running.result(numbers[0]) is None, "a result is given once"
    running.step()


def test_requests_wait_for_room() -> None:
    """Three blocks for sequences of two: one after another, in order, and no step runs out."""
    running = engine(sequences=4, blocks=3)
    results = running.generate(Request(text(150, seed), replace(GREEDY, max_new_tokens=6)) for seed in range(3))
    assert [len(result.tokens) for result in results] == [6, 6, 6]
    assert running.cache.free_blocks == 3 and running.cache.free_slots == 4
    assert results[2].tokens == alone(text(150, 2), replace(GREEDY, max_new_tokens=6)).tokens


def test_a_prefix_is_run_once_and_shared() -> None:
    for speculate in (False, True):
        running = engine(sequences=4, speculate=speculate, chunk=100)
        prefix = running.add_prefix(text(150))
        free = running.cache.free_blocks
        requests = [Request([*text(150), *text(8, seed)], GREEDY) for seed in (5, 6)]
        requests.append(Request([*text(149), 3], GREEDY))
        for request in requests:
            running.submit(request)
        running.step()
        assert free - running.cache.free_blocks == 2 + 2, "one block each for the two that share, two for the other"
        running.cancel()
        results = running.generate(requests)
        for request, result in zip(requests, results, strict=True):
            assert result.tokens == alone(request.prompt, GREEDY).tokens
        running.drop_prefix(prefix)
        assert running.cache.free_blocks == running.cache.layout.blocks
        with pytest.raises(ContractError, match="prefix: found one that is not kept"):
            running.drop_prefix(prefix)


def test_prefixes_may_hold_all_the_room() -> None:
    running = engine(sequences=2, blocks=2)
    prefix = running.add_prefix(text(130))
    with pytest.raises(CacheFull):
        running.generate([Request(text(20), GREEDY)])
    assert running.is_idle and running.cache.free_slots == 1
    running.drop_prefix(prefix)
    assert len(running.generate([Request(text(20), GREEDY)])[0].tokens) == 10
    with pytest.raises(ContractError, match="prompt: found no tokens"):
        running.add_prefix([])


def test_ctrl_c_ends_with_what_there_is() -> None:
    running = engine(sequences=2, chunk=32)
    told: list[int] = []

    def interrupt(token: int) -> None:
        told.append(token)
        if len(told) == 5:
            raise KeyboardInterrupt

    requests = [Request(text(4), GREEDY, interrupt), Request(text(30), GREEDY), Request(text(9), GREEDY)]
    results = running.generate(requests)
    assert [result.finish for result in results] == ["interrupted"] * 3
    assert list(results[0].tokens) == told and results[2].tokens == ()
    assert results[0].tokens == alone(text(4), GREEDY).tokens[:5]
    assert running.cache.free_slots == 2 and running.cache.free_blocks == running.cache.layout.blocks
    assert running.generate([Request(text(4), GREEDY)])[0].tokens == alone(text(4), GREEDY).tokens


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_breaks_off(monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]) -> None:
    """The sequences of the step end, the cache is whole, and the engine goes on."""
    running = engine(sequences=2)
    number = running.submit(Request(text(4), GREEDY))
    running.step()

    def broken(*_: object) -> None:
        raise raised("out of something")

    with monkeypatch.context() as patched:
        patched.setattr(Transformer, "forward", broken)
        with pytest.raises(raised):
            running.step()
    result = running.result(number)
    assert result is not None and len(result.tokens) == 1
    assert result.finish == ("interrupted" if raised is KeyboardInterrupt else "failed")
    assert running.is_idle and running.cache.free_slots == 2
    assert running.generate([Request(text(4), GREEDY)])[0].tokens == alone(text(4), GREEDY).tokens


def test_after_a_broken_run_nothing_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was queued by others stays."""
    running = engine(sequences=2)
    mine = running.submit(Request(text(4), GREEDY))

    def broken(*_: object) -> None:
        raise RuntimeError("out of something")

    with monkeypatch.context() as patched:
        patched.setattr(Transformer, "forward", broken)
        with pytest.raises(RuntimeError):
            running.generate([Request(text(7, seed), GREEDY) for seed in range(5)])
    failed = running.result(mine)
    assert failed is not None and failed.finish == "failed" and not running._results
    assert running.is_idle and running.cache.free_slots == 2
    waiting = running.submit(Request(text(4), GREEDY))
    with pytest.raises(ContractError):
        running.generate([Request([], GREEDY)])
    running.generate([])
    last = running.result(waiting)
    assert last is not None and last.tokens == alone(text(4), GREEDY).tokens


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "prompt: found no tokens; valid: one or more"),
        ([1, 96], "prompt: token 1: found id 96; valid: 0 to 95"),
        ([-1], "prompt: token 0: found id -1"),
        ([1] * 129, "prompt: found 129 tokens; valid: at most 128, what this cache has for a sequence"),
    ],
)
def test_prompts_that_are_refused(tokens: list[int], message: str) -> None:
    running = engine(positions=128)
    with pytest.raises(ContractError, match=message):
        running.submit(Request(tokens))
    assert running.is_idle


def test_one_wrong_prompt_leaves_none_of_them_queued() -> None:
    running = engine(sequences=2)
    told: list[int] = []
    with pytest.raises(ContractError, match="prompt: token 0: found id 96"):
        running.generate([Request(text(5), GREEDY, told.append), Request([96], GREEDY)])
    assert running.is_idle
    assert running.generate([Request(text(4), GREEDY)])[0].tokens == alone(text(4), GREEDY).tokens and not told


def test_a_prompt_longer_than_the_model_may_have() -> None:
    short = Transformer(CONFIG.replace(max_position_embeddings=64), model().weights)
    settings = CacheSettings(step_tokens=64, block=128)
    cache = PagedCache(CacheLayout(short.config, settings, short.precision, 1))
    assert cache.positions_max == 64
    with pytest.raises(ContractError, match="at most 64, max_position_embeddings of the model"):
        Engine(short, cache).submit(Request(text(65)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature: found -0.1"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": float("inf")}, "temperature: found inf"),
        ({"temperature": 1e-42}, "temperature: found 1e-42; valid: 0 .greedy., or 1e-05 and more"),
        ({"top_k": -1}, "top_k: found -1"),
        ({"top_k": 1 << 63}, "top_k: found 9223372036854775808"),
        ({"top_p": 0.0}, "top_p: found 0.0; valid: more than 0, at most 1"),
        ({"top_p": 1.5}, "top_p: found 1.5"),
        ({"seed": 1 << 63}, "seed: found 9223372036854775808"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0"),
    ],
)
def test_options_that_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ContractError, match=f"sampling: {message}"):
        replace(GREEDY, **changes)  # type: ignore[arg-type]


def test_engines_that_are_refused() -> None:
    with pytest.raises(ContractError, match="chunk: found 0"):
        engine(chunk=0)
    cache = engine().cache
    without = Transformer(CONFIG, replace(model().weights, mtp=None))
    with pytest.raises(ContractError, match="the model has no MTP layer"):
        Engine(without, cache, speculate=True)
    with pytest.raises(ContractError, match="no room for drafts"):
        Engine(model(), cache, speculate=True)
    other = Transformer(CONFIG, model().weights, wide=torch.float64)
    with pytest.raises(ContractError, match="another model or precision"):
        Engine(other, cache)


def test_devices() -> None:
    assert device_of("cpu") == torch.device("cpu")
    for wrong, message in (
        ("meta", "valid: cpu, cuda"),
        ("gpu", "found 'gpu'"),
        ("cuda:256", "found cuda:256"),
        ("cuda:-1", "found"),
    ):
        with pytest.raises(ContractError, match=message):
            device_of(wrong)


def test_the_cache_is_as_long_as_asked() -> None:
    assert engine().cache.positions_max == POSITIONS
