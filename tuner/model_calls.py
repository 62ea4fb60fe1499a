"""The calls of a model's decode and prefill steps, from its configuration alone: no weights, no GPU.

The engine's own step runs on tensors that have shapes and no data (device ``meta``), so that what is listed here is
what the model's code asks for, whatever becomes of that code. A kernel is asked for as on a GPU; a call that no kernel
is made for is listed under the operator's own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv4.generator.console import UsageError
from dsv4.runtime import dispatch
from dsv4.runtime.checkpoint.shapes_only import DEVICE, shapes_only
from dsv4.runtime.engine import tick
from dsv4.runtime.engine.batch import Part, make_batch, reach_of
from dsv4.runtime.engine.options import SamplingOptions
from dsv4.runtime.errors import Dsv4Error
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics
from dsv4.runtime.model.presets import FLASH, PRO, TINY
from dsv4.runtime.model.step import DECODE_TOKENS_MAX
from dsv4.runtime.model.transformer import Transformer
from dsv4.tuner.coverage import Asked, distinct

MODELS = {"flash": FLASH, "pro": PRO, "tiny": TINY}
DRAFTS_MAX = 1
"""The engine drafts one token ahead."""


@dataclass(frozen=True)
class Serving:
    """What a model is to serve: every one of ``batches`` sequences that decode, at every one of ``contexts``.

    ``contexts`` are the positions of a sequence, the step's own included. ``drafts`` tokens are checked beside each new
    one. A prefill step holds the last ``chunk`` tokens of a prompt as long as each context.
    """

    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (8192,)
    drafts: int = 0
    chunk: int = 2048

    def require_fits(self, config: ModelConfig) -> None:
        """Raises UsageError, naming the option, for what the model or the engine cannot do."""
        least = 2 + self.drafts
        for option, values, low, high in (
            ("--batch", self.batches, 1, 65536),
            ("--context", self.contexts, least, config.max_position_embeddings),
            ("--drafts", (self.drafts,), 0, DRAFTS_MAX if config.num_nextn_predict_layers else 0),
            ("--chunk", (self.chunk,), DECODE_TOKENS_MAX + 1, config.max_position_embeddings),
        ):
            for value in values:
                if not low <= value <= high:
                    raise UsageError(f"{option}: found {value}; valid: {low} to {high}")


@dataclass(frozen=True)
class StepCalls:
    """One step: ``tokens`` of ``sequences`` in all, and its kinds of calls in the order of the first of each."""

    name: str
    tokens: int
    sequences: int
    calls: tuple[Asked, ...]


def config_of(model: str) -> ModelConfig:
    """``flash``, ``pro``, ``tiny``, or the configuration in a file or folder. Raises UsageError."""
    if model in MODELS:
        return MODELS[model]
    if not Path(model).exists():
        raise UsageError(f"--model: found '{model}'; valid: {', '.join(MODELS)}, or a config.json")
    try:
        return ModelConfig.load(model)
    except Dsv4Error as error:
        raise UsageError(f"--model: {' '.join(str(error).split())}") from None


def model_steps(config: ModelConfig, serving: Serving, numerics: Numerics = Numerics.ENGINE) -> list[StepCalls]:
    """The steps of ``serving``: a decode step for each batch and context, then a prefill step for each context.

    Flags that a process chooses (programmatic dependent launch) are those of this process. Raises UsageError.
    """
    serving.require_fits(config)
    model = Transformer(config, shapes_only(config), numerics=numerics)
    steps = []
    for context in serving.contexts:
        for batch in serving.batches:
            tokens = 1 + serving.drafts
            parts = [_part(slot, context - tokens, tokens, drafted=tokens > 1) for slot in range(batch)]
            calls = traced(model, parts, serving)
            steps.append(StepCalls(f"decode {batch} × {tokens} at {context}", batch * tokens, batch, calls))
    for context in serving.contexts:
        tokens = min(serving.chunk, context)
        calls = traced(model, [_part(0, context - tokens, tokens)], serving)
        steps.append(StepCalls(f"prefill {tokens} at {context}", tokens, 1, calls))
    return steps


def _part(slot: int, first: int, tokens: int, *, drafted: bool = False) -> Part:
    return Part(slot, first, range(tokens), SamplingOptions(max_new_tokens=1), drafted=drafted)


def traced(model: Transformer, parts: Sequence[Part], serving: Serving) -> tuple[Asked, ...]:
    """The kinds of calls of the engine's step on ``parts``, in a cache that has just the room for them."""
    config, precision = model.config, model.precision
    kv, index = formats_for(precision.numerics, config)
    settings = CacheSettings(
        sequences=len(parts), drafts=max(1, serving.drafts), step_tokens=max(len(part.tokens) for part in parts),
        kv=kv, index=index,
    )  # fmt: skip
    reach = reach_of(parts, config.max_position_embeddings)
    cache = PagedCache(CacheLayout.holding(config, settings, precision, reach), DEVICE)
    batch = make_batch(parts, config.max_position_embeddings, DEVICE)
    with dispatch.trace_dispatch() as calls:
        if serving.drafts:
            memory = tick.DraftMemory(len(parts), config.vocab_size, precision.wide, DEVICE)
            tick.speculative_tick(model, cache, batch, memory)
        else:
            tick.plain_tick(model, cache, batch)
    return tuple(distinct(calls))
