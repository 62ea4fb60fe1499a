"""A decoding step can be recorded: nothing in it asks the device for a value, and its inputs never move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsv4.runtime.engine import engine as engine_module
from dsv4.runtime.engine import tick
from dsv4.runtime.engine.batch import Batch, Part, make_batch, reach_of
from dsv4.runtime.engine.buffers import DecodeBuffers
from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, SamplingOptions
from dsv4.runtime.model import moe
from tests.engine.small_engine import engine, text

WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal"}
"""Operators that need a value, or a number of values, on the host."""
OPTIONS = SamplingOptions(temperature=0.8, top_k=20, top_p=0.9, seed=3, max_new_tokens=100)


class Forbidding(TorchDispatchMode):
    """Raises where an operator would wait for the device, and counts those that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__str__()
        by_mask = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or "unique" in name or by_mask:
            raise AssertionError(f"{name} waits for the device")
        self.seen += 1
        return func(*args, **(kwargs or {}))


def forbidden(name: str) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise AssertionError(f"Tensor.{name} waits for the device")

    return call


@pytest.fixture
def no_waiting() -> Callable[[], AbstractContextManager[Forbidding]]:
    """A context in which nothing may wait; what the dispatch mode does not see is forbidden by name. The experts work
    as they do on a GPU while a graph is recorded."""

    @contextmanager
    def watched() -> Iterator[Forbidding]:
        with pytest.MonkeyPatch.context() as patched, Forbidding() as watch:
            for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
                patched.setattr(torch.Tensor, name, forbidden(name))
            patched.setattr(moe, "_sync_free", lambda step: True)
            yield watch

    return watched


def decoding(speculate: bool) -> tuple[Engine, list[Part]]:
    """An engine in the middle of three sequences, and the parts of its next step, appended to the cache."""
    running = engine(speculate=speculate)
    for seed, length in enumerate((5, 133, 70)):
        running.submit(Request(text(length, seed), OPTIONS))
    running.step()
    running.step()
    parts = [part for _, part in running._scheduled()]
    running.cache.append({part.slot: len(part.tokens) for part in parts})
    return running, parts


def tick_of(running: Engine, batch: Batch) -> torch.Tensor:
    if running._memory is None:
        return tick.plain_tick(running.model, running.cache, batch)
    return tick.speculative_tick(running.model, running.cache, batch, running._memory)


Watched = Callable[[], AbstractContextManager[Forbidding]]


@pytest.mark.parametrize("speculate", [False, True])
def test_nothing_waits_for_the_device(speculate: bool, no_waiting: Watched) -> None:
    running, parts = decoding(speculate)
    batch = running._buffers.fill(parts)
    with no_waiting() as watch:
        tick_of(running, batch)
        running.cache.settle()
    assert watch.seen > 500


@pytest.mark.parametrize("speculate", [False, True])
def test_decoding_makes_nothing_anew(speculate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first new token on steps run in the buffers, and block tables stay as they were at admission, over the
    end of a block."""
    running = engine(sequences=1, speculate=speculate)
    number = running.submit(Request(text(124), replace(OPTIONS, max_new_tokens=8)))
    running.step()
    table = running.cache._table.clone()
    monkeypatch.setattr(engine_module, "make_batch", forbidden("made anew"))
    monkeypatch.setattr(running.cache, "_ints", forbidden("made anew"))
    while not running.is_idle:
        assert torch.equal(running.cache._table, table) and (table[0] >= 0).sum() == 2
        running.step()
    result = running.result(number)
    assert result is not None and len(result.tokens) == 8


def test_waiting_would_be_noticed(no_waiting: Watched) -> None:
    values = torch.arange(3)
    with no_waiting():
        for wait in (
            lambda: int(values[0]),
            lambda: values.tolist(),
            lambda: values.nonzero(),
            lambda: values[values > 1],
            lambda: torch.masked_select(values, values > 1),
            lambda: values.unique(),
            lambda: 1 if values[0] > 0 else 2,
        ):
            with pytest.raises(AssertionError, match="waits for the device"):
                wait()


@pytest.mark.parametrize("speculate", [False, True])
def test_the_buffers_hold_what_a_made_batch_does(speculate: bool) -> None:
    running, parts = decoding(speculate)
    filled = running._buffers.fill(parts)
    made = make_batch(parts, running.cache.positions_max, "cpu")
    assert filled.step.lengths == made.step.lengths and filled.step.reach == made.step.reach
    assert filled.draws.drafted == made.draws.drafted == (3 if speculate else 0)
    for name in ("tokens", "positions", "sequence", "starts", "slots", "logit_rows"):
        assert torch.equal(getattr(filled.step, name), getattr(made.step, name)), name
    for name in ("slots", "top_k", "seed", "position", "temperature", "top_p"):
        assert torch.equal(getattr(filled.draws, name), getattr(made.draws, name)), name
        assert getattr(filled.draws, name).dtype == getattr(made.draws, name).dtype


def tensors(batch: Batch) -> list[torch.Tensor]:
    parts = [*vars(batch.step).values(), *vars(batch.draws).values(), batch.following]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def test_steps_of_one_shape_have_the_same_tensors() -> None:
    buffers = DecodeBuffers(4, 2, 1024, "cpu")
    parts = [Part(slot, 30 + slot, (5, 6), OPTIONS, drafted=True) for slot in range(3)]
    first = buffers.fill(parts)
    later = [Part(slot, 31 + slot, (7, 8), OPTIONS, drafted=True) for slot in (2, 0, 1)]
    places = [tensor.data_ptr() for tensor in tensors(first)]
    second = buffers.fill(later)
    assert second is first and [tensor.data_ptr() for tensor in tensors(second)] == places
    assert second.step.tokens.tolist() == [7, 8] * 3 and second.step.slots.tolist() == [2, 0, 1]
    far = buffers.fill([Part(0, 500, (1, 2), OPTIONS, drafted=True)] * 3)
    assert far is not first and far.step.reach == 512 and first.step.reach == 128


@pytest.mark.parametrize("speculate", [False, True])
def test_padding_changes_nothing(speculate: bool) -> None:
    """The step of three sequences as one of four, as a graph of a fixed size would run it."""
    results, states = [], []
    for sequences in (3, 4):
        running, parts = decoding(speculate)
        batch = running._buffers.fill(parts, sequences=sequences)
        assert batch.step.slots.tolist() == [0, 1, 2, -1][:sequences]
        results.append(tick_of(running, batch)[:3])
        states.append(
            [layer.window.data.view(-1, 64)[: running.cache.layout.window_rows] for layer in running.cache.layers()]
        )
    assert torch.equal(*results)
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "reach"), [(0, 128), (127, 128), (128, 256), (900, 1024), (1023, 1024), (5000, 5120), (9800, 10_000)]
)
def test_reach_is_rounded_up(position: int, reach: int) -> None:
    assert reach_of([Part(0, 0, (1,), OPTIONS), Part(1, position, (1,), OPTIONS)], 10_000) == reach


def test_few_reaches_make_up_all_positions() -> None:
    found = {each: reach_of([Part(0, each, (1,), OPTIONS)], 1 << 20) for each in range(0, 1 << 20, 97)}
    assert len(set(found.values())) < 60
    assert all(each < reach <= max(each + 128, 1.25 * (each + 1)) for each, reach in found.items())
