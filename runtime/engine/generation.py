"""What ``python -m dsv4.generate`` does: load, make room, run, print."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.engine.device import device_of
from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.expanding import expand_if_small
from dsv4.runtime.engine.meter import Meter, ProgressLine
from dsv4.runtime.engine.options import Request, Result, SamplingOptions, require_prompt
from dsv4.runtime.engine.tokenizer import TextStream, Tokenizer, why_none
from dsv4.runtime.errors import ContractError
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.kv.table import parse_size, table
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.transformer import Transformer


def generate(chosen: Namespace, out: TextIO, err: TextIO) -> bool:
    """Do what the command line ``chosen`` says; whether Ctrl-C ended it. What is given is checked before weights load.

    The text goes to ``out`` as it comes, or with several prompts when all are done; progress and figures go to ``err``.
    Raises ``Dsv4Error``.
    """
    device = device_of(chosen.device)
    folder = chosen.checkpoint.parent if chosen.checkpoint.is_file() else chosen.checkpoint
    config = ModelConfig.load(folder)
    tokenizer = Tokenizer.load(folder)
    prompts = _prompts(chosen, folder, tokenizer)
    options = _options(chosen, config)
    if chosen.chunk < 1:
        raise ContractError(f"--chunk: found {chosen.chunk}; valid: 1 or more")
    if chosen.speculate and not config.num_nextn_predict_layers:
        raise ContractError("--speculate: the model has no MTP layer; valid: a checkpoint with one")
    layout, budget = _layout(chosen, config, prompts)
    for prompt in prompts:
        require_prompt(prompt, config, layout.positions_max)
    if chosen.show_cache:
        print(table(layout, budget), file=err)
    weights = expand_if_small(load(chosen.checkpoint, device, mtp=chosen.speculate).weights, layout.precision.wide)
    model = Transformer(config, weights, numerics=layout.precision.numerics)
    engine = Engine(model, PagedCache(layout, device), chunk=chosen.chunk, speculate=chosen.speculate)
    streams = not chosen.json and len(prompts) == 1
    teller = _Teller(Meter(sum(map(len, prompts))), ProgressLine(err), tokenizer, out if streams else None)
    requests = [Request(prompt, options, teller.told) for prompt in prompts]
    results = engine.generate(requests, after_step=teller.stepped)
    teller.end()
    if chosen.json:
        print(json.dumps(_report(results, teller, tokenizer, chosen)), file=out)
    elif not streams:
        for number, result in enumerate(results):
            print(f"[{number}] {_shown(result.tokens, tokenizer)}", file=out)
    print(_summary(results, teller.meter), file=err)
    return any(result.finish == "interrupted" for result in results)


def _prompts(chosen: Namespace, folder: Path, tokenizer: Tokenizer | None) -> list[list[int]]:
    if chosen.prompt and tokenizer is None:
        raise ContractError(f"--prompt: {why_none(folder)}; valid: --prompt-ids")
    prompts = [tokenizer.encode(text) for text in chosen.prompt if tokenizer is not None]
    prompts += [_ids("--prompt-ids", text) for text in chosen.prompt_ids]
    if not prompts:
        raise ContractError("prompt: found none; valid: --prompt TEXT or --prompt-ids 5,9,11")
    return prompts


def _ids(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ContractError(f"{name}: found {text!r}; valid: numbers with commas between, such as 5,9,11") from None


def _options(chosen: Namespace, config: ModelConfig) -> SamplingOptions:
    stops = _ids("--stop-ids", chosen.stop_ids)
    for token in stops:
        if not 0 <= token < config.vocab_size:
            raise ContractError(f"--stop-ids: found id {token}; valid: 0 to {config.vocab_size - 1}")
    return SamplingOptions(
        max_new_tokens=chosen.max_new_tokens,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        seed=chosen.seed,
        stop_tokens=frozenset(stops if chosen.ignore_eos else [*stops, config.eos_token_id]),
    )


def _layout(chosen: Namespace, config: ModelConfig, prompts: Sequence[Sequence[int]]) -> tuple[CacheLayout, int | None]:
    """A cache for ``prompts`` and what is to come, or what fits into the bytes that were given."""
    precision = Precision(Numerics(chosen.numerics))
    kv, index = formats_for(precision.numerics, config)
    longest = max(map(len, prompts))
    settings = CacheSettings(
        sequences=len(prompts),
        block=chosen.block,
        drafts=1 if chosen.speculate else 0,
        step_tokens=min(chosen.chunk, max(1, sum(map(len, prompts)))),
        positions_max=longest + chosen.max_new_tokens,
        kv=kv,
        index=index,
        mtp=chosen.speculate,
    )
    if chosen.cache is None:
        tokens = min(longest + chosen.max_new_tokens, config.max_position_embeddings)
        return CacheLayout.holding(config, settings, precision, tokens), None
    budget = parse_size(chosen.cache)
    return CacheLayout.within(config, settings, precision, budget), budget


@dataclass
class _Teller:
    """Tells of new tokens as they come: the text itself to ``out`` where one sequence is streamed, else their count."""

    meter: Meter
    line: ProgressLine
    tokenizer: Tokenizer | None
    out: TextIO | None

    def __post_init__(self) -> None:
        self._stream = TextStream(self.tokenizer) if self.tokenizer and self.out else None

    def stepped(self, engine: Engine) -> None:
        """After a step: how far the prompts are, then how many tokens there are."""
        done, prompts = engine.prompt_progress
        count = f"{self.meter.new_tokens} new tokens, {self.meter.decode_rate:.1f} tokens/s"
        if done < prompts:
            self.line.show(f"prompt: {done} of {prompts} tokens" + (f", {count}" if self.meter.new_tokens else ""))
        elif self.out is None:
            self.line.show(count)

    def told(self, token: int) -> None:
        """A new token."""
        self.meter.add()
        if self.out is None:
            return
        self.line.clear()
        if self._stream is not None:
            self._say(self._stream.add(token))
        else:
            self._say(f"{token}" if self.meter.new_tokens == 1 else f",{token}")

    def _say(self, text: str) -> None:
        assert self.out is not None
        self.out.write(text)
        self.out.flush()

    def end(self) -> None:
        self.line.clear()
        if self.out is not None:
            self._say((self._stream.end() if self._stream else "") + "\n")


def _shown(tokens: Sequence[int], tokenizer: Tokenizer | None) -> str:
    return tokenizer.decode(tokens) if tokenizer else ",".join(map(str, tokens))


def _report(
    results: Sequence[Result], teller: _Teller, tokenizer: Tokenizer | None, chosen: Namespace
) -> dict[str, Any]:
    return {
        "checkpoint": str(chosen.checkpoint),
        "device": chosen.device,
        "numerics": chosen.numerics,
        "sequences": [
            {
                "prompt_ids": list(result.prompt),
                "ids": list(result.tokens),
                "text": tokenizer.decode(result.tokens) if tokenizer else None,
                "finish": result.finish,
                "drafts": result.drafts,
                "accepted": result.accepted,
            }
            for result in results
        ],
        "prompt_tokens_per_s": round(teller.meter.prompt_rate, 2),
        "new_tokens_per_s": round(teller.meter.decode_rate, 2),
    }


def _summary(results: Sequence[Result], meter: Meter) -> str:
    drafts, accepted = sum(r.drafts for r in results), sum(r.accepted for r in results)
    parts = [
        f"{meter.prompt_tokens} prompt tokens at {meter.prompt_rate:.1f} tokens/s",
        f"{meter.new_tokens} new at {meter.decode_rate:.1f} tokens/s",
        f"ended by {', '.join(sorted({result.finish for result in results}))}",
    ]
    if drafts:
        parts.insert(2, f"{accepted} of {drafts} drafts kept")
    return "; ".join(parts)
