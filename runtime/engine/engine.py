"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from dsv4.runtime.engine import tick
from dsv4.runtime.engine.batch import Batch, Part, make_batch
from dsv4.runtime.engine.buffers import DecodeBuffers
from dsv4.runtime.engine.graphs import Graphs
from dsv4.runtime.engine.options import Finish, Request, Result, require_prompt
from dsv4.runtime.engine.prefixes import Prefix, Prefixes
from dsv4.runtime.engine.running import Running
from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.model.moe import SYNC_FREE_TOKENS_MAX
from dsv4.runtime.model.transformer import Transformer


class Engine:
    """Runs requests on ``model`` with ``cache``, whose settings say how many at a time.

    Each step takes the next token of every sequence that decodes, and up to ``chunk`` tokens of prompts. A request is
    admitted when blocks for all its tokens are free, so that no later step can run out of them; until then it waits.
    ``speculate``: the MTP layer drafts a token ahead, which the next step checks; greedy text is the same as without,
    sampled text has the same distribution. ``graphs``: on a GPU, record decoding steps of up to
    ``SYNC_FREE_TOKENS_MAX`` tokens as CUDA graphs. Raises ``ContractError`` where model, cache and options do not go
    together.
    """

    def __init__(
        self,
        model: Transformer,
        cache: PagedCache,
        *,
        chunk: int = 512,
        speculate: bool = False,
        graphs: bool = True,
    ) -> None:
        if chunk < 1:
            raise ContractError(f"engine: chunk: found {chunk}; valid: 1 or more")
        settings = cache.layout.settings
        if cache.layout.config != model.config or cache.layout.precision != model.precision:
            raise ContractError("engine: cache: found one of another model or precision; valid: one of this model's")
        if cache.device.type != model.device.type:
            raise ContractError(f"engine: cache: found it on {cache.device}; valid: {model.device}, as the model")
        if speculate and model.weights.mtp is None:
            raise ContractError("engine: speculate: the model has no MTP layer; valid: a checkpoint with one")
        if speculate and not (settings.mtp and settings.drafts):
            raise ContractError(
                "engine: speculate: the cache has no room for drafts; valid: mtp=True, drafts=1 or more"
            )
        self.model, self.cache, self.speculate = model, cache, speculate
        self._chunk = min(chunk, cache.step_tokens_max)
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._results: dict[int, Result] = {}
        self._numbers = 0
        self._prefixes = Prefixes(cache, recompute=1 if speculate else 0)
        self._buffers = DecodeBuffers(settings.sequences, 2 if speculate else 1, cache.positions_max, model.device)
        self._graphs = Graphs(model.device) if graphs and model.device.type == "cuda" else None
        self._memory = None
        if speculate:
            self._memory = tick.DraftMemory(
                settings.sequences, model.config.vocab_size, model.precision.wide, model.device
            )

    @property
    def is_idle(self) -> bool:
        """Whether no request is running or waiting."""
        return not self._running and not self._waiting

    def submit(self, request: Request) -> int:
        """Queue ``request``; gives its number. Raises ``ContractError`` for a prompt that cannot be served."""
        self._require(request)
        return self._queue(request)

    def _require(self, request: Request) -> None:
        require_prompt(request.prompt, self.model.config, self.cache.positions_max)

    def _queue(self, request: Request) -> int:
        self._numbers += 1
        self._waiting.append(Running(self._numbers, request, text=list(request.prompt)))
        return self._numbers

    def result(self, number: int) -> Result | None:
        """What request ``number`` gave, once; ``None`` before it has ended."""
        return self._results.pop(number, None)

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens of prompts that are done, and all of them, of the requests that have no new token yet."""
        prompts = [each for each in (*self._running, *self._waiting) if not each.new_tokens]
        return sum(each.done for each in prompts), sum(each.prompt_length for each in prompts)

    def generate(
        self, requests: Iterable[Request], *, after_step: Callable[[Engine], None] | None = None
    ) -> list[Result]:
        """Run ``requests``, and whatever is queued, to their ends; their results in order. ``after_step`` is told.

        A prompt that ``submit`` refuses is raised before any request is queued. Ctrl-C ends all sequences with what
        they have (``finish="interrupted"``). An error that a step raises ends the sequences of that step
        (``"failed"``) and what is left of ``requests``, and is raised.
        """
        requests = list(requests)
        for request in requests:
            self._require(request)
        numbers = [self._queue(request) for request in requests]
        try:
            while not self.is_idle:
                self.step()
                if after_step is not None:
                    after_step(self)
        except KeyboardInterrupt:
            self.cancel()
        except BaseException:
            self._drop(set(numbers))
            raise
        return [self._results.pop(number) for number in numbers]

    def cancel(self, finish: Finish = "interrupted") -> None:
        """End all requests, running and waiting, with what they have."""
        for running in (*self._running, *self._waiting):
            self._end(running, running.finish or finish)
        self._running.clear()
        self._waiting.clear()

    def step(self) -> None:
        """Admit what fits and run one step; then call the requests' ``on_token``. Does nothing when idle."""
        self._admit()
        working = self._scheduled()
        if not working:
            return
        try:
            drawn = self._run([part for _, part in working])
        except BaseException as error:
            finish: Finish = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            for running, _ in working:
                self._end(running, finish)
            self._running = [running for running in self._running if running.finish is None]
            raise
        news = []
        rows = iter(drawn)
        for running, part in working:
            new = self._advance(running, part, next(rows) if part.draws else [])
            news.append((running, new))
        ended = [running for running, _ in working if running.finish is not None]
        for running in ended:
            assert running.finish is not None
            self._end(running, running.finish)
        self._running = [running for running in self._running if running.finish is None]
        for running, new in news:
            if running.request.on_token is not None:
                for token in new:
                    running.request.on_token(token)

    def add_prefix(self, tokens: Sequence[int]) -> Prefix:
        """Run ``tokens`` through the model and keep them in a slot of the cache; requests that begin with them start
        from there. Raises ``CacheFull``, or ``ContractError`` as ``submit`` does."""
        require_prompt(tokens, self.model.config, self.cache.positions_max)
        slot = self.cache.open()
        running = Running(0, Request(tokens), slot=slot, text=[*tokens, 0])  # the token after them is not known
        try:
            self.cache.reserve(slot, len(tokens))
            while running.left > 1:
                part = running.part(min(self._chunk, running.left - 1), self.cache.positions_max)
                self._run([part])
                running.done += len(part.tokens)
        except BaseException:
            self.cache.free(slot)
            raise
        return self._prefixes.add(slot, tokens)

    def drop_prefix(self, prefix: Prefix) -> None:
        """Give the prefix's slot back; sequences that began with it go on."""
        self._prefixes.drop(prefix)

    def _admit(self) -> None:
        while self._waiting:
            running = self._waiting[0]
            try:
                slot, running.done = self._prefixes.open(running.text)
                try:
                    self.cache.reserve(slot, running.positions(self.cache.positions_max))
                except BaseException:
                    self.cache.free(slot)
                    running.done = 0
                    raise
            except CacheFull:
                if not self._running:
                    self._end(self._waiting.popleft(), "failed")
                    raise
                return
            running.slot = slot
            self._running.append(self._waiting.popleft())

    def _scheduled(self) -> list[tuple[Running, Part]]:
        """Each sequence of the next step with its part, in the order of ``batch``'s kinds."""
        working, room = [], self._chunk
        for running in self._running:
            if running.is_decoding:
                working.append((running, running.part(1, self.cache.positions_max)))
            elif room:
                part = running.part(min(room, running.left), self.cache.positions_max)
                room -= len(part.tokens)
                working.append((running, part))
        return sorted(working, key=lambda each: (not each[1].drafted, not each[1].draws))

    def _run(self, parts: list[Part]) -> list[list[int]]:
        """The rows of the tick on ``parts``. The only wait for the device is the read at the end."""
        self.cache.append({part.slot: len(part.tokens) for part in parts})
        tokens = self._buffers.tokens
        if all(part.draws and part.drafted == self.speculate and len(part.tokens) == tokens for part in parts):
            batch = self._buffers.fill(parts)
            recorded = self._graphs is not None and batch.step.tokens.shape[0] <= SYNC_FREE_TOKENS_MAX
        else:
            batch = make_batch(parts, self.cache.positions_max, self.model.device)
            recorded = False
        drawn = self._graphs.run(self._tick, batch) if recorded and self._graphs else self._tick(batch)
        self.cache.settle()
        return drawn.tolist()

    def _tick(self, batch: Batch) -> torch.Tensor:
        if self._memory is None:
            return tick.plain_tick(self.model, self.cache, batch)
        return tick.speculative_tick(self.model, self.cache, batch, self._memory)

    def _advance(self, running: Running, part: Part, row: list[int]) -> list[int]:
        """Take what the step gave ``running``: the new tokens of its text."""
        running.done += len(part.tokens)
        if not row:
            return []
        tokens = [row[tick.FIRST]]
        if part.drafted:
            running.drafts += 1
            if row[tick.KEPT]:
                running.accepted += 1
                tokens.append(row[tick.SECOND])
            else:
                running.done -= 1
                self.cache.rollback(running.slot, running.done)
        if self.speculate:
            running.draft = row[tick.DRAFT]
        new = []
        for token in tokens:
            if running.finish is None and running.take(token, self.cache.positions_max):
                new.append(token)
        return new

    def _drop(self, numbers: set[int]) -> None:
        """End these requests where they stand; nobody will ask for their results."""
        for running in (*self._running, *self._waiting):
            if running.number in numbers:
                self._end(running, "failed")
        self._running = [running for running in self._running if running.number not in numbers]
        self._waiting = deque(running for running in self._waiting if running.number not in numbers)
        for number in numbers:
            self._results.pop(number, None)

    def _end(self, running: Running, finish: Finish) -> None:
        running.finish = finish
        if running.slot >= 0:
            self.cache.free(running.slot)
            running.slot = -1
        self._results[running.number] = running.result()
