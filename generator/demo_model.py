"""The demo's model: a small random checkpoint is written, loaded and generated from, and what served each call told."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import torch

import dsv4
from dsv4.generator.console import out
from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.checkpoint.write_tiny import write_checkpoint
from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.expanding import expand_if_small
from dsv4.runtime.engine.meter import Meter
from dsv4.runtime.engine.options import Request, Result, SamplingOptions
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.kv.table import table
from dsv4.runtime.model.numerics import Numerics
from dsv4.runtime.model.presets import NARROW
from dsv4.runtime.model.transformer import Transformer

CONFIG = NARROW.replace(index_topk=32)
"""The indexer has to choose from the entries of the longer prompt."""
PROMPTS = (tuple(range(20, 160)), (5, 9, 11))
NEW_TOKENS, POSITIONS = 12, 256


def generate_text(device: str) -> int:
    """Write, load and generate; tell the cache's table, the speed and what served each call. Returns how many of the
    sequences are not as long as asked. On a CPU with one thread: matrices so small take longer with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _generate_text(device)
    finally:
        torch.set_num_threads(threads)


def _generate_text(device: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, CONFIG)
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        loaded = load(folder, device)
    model = Transformer(loaded.config, expand_if_small(loaded.weights), numerics=Numerics.ENGINE)
    kv, index = formats_for(Numerics.ENGINE, loaded.config)
    settings = CacheSettings(sequences=len(PROMPTS), positions_max=POSITIONS, kv=kv, index=index)
    layout = CacheLayout.holding(loaded.config, settings, model.precision, POSITIONS)
    engine = Engine(model, PagedCache(layout, device), speculate=True, graphs=False)
    _say(f"a random checkpoint of {written / 1e6:.1f} MB: {loaded.config.num_hidden_layers} layers and the MTP layer")
    for line in table(layout).splitlines():
        _say(line)

    meter = Meter(sum(map(len, PROMPTS)))
    options = SamplingOptions(max_new_tokens=NEW_TOKENS)
    requests = [Request(prompt, options, lambda token: meter.add()) for prompt in PROMPTS]
    with dsv4.trace_dispatch() as trace:
        results = engine.generate(requests)
    _tell(results, meter, device)
    for implementation, calls in Counter(call.implementation for call in trace).most_common():
        operators = {call.op for call in trace if call.implementation == implementation}
        _say(f"{calls} calls of {len(operators)} operators served by {implementation}: {', '.join(sorted(operators))}")
    return sum(len(result.tokens) != NEW_TOKENS for result in results)


def _tell(results: list[Result], meter: Meter, device: str) -> None:
    for result in results:
        _say(f"{len(result.prompt)} prompt tokens, then {', '.join(map(str, result.tokens))}")
    drafts, kept = sum(result.drafts for result in results), sum(result.accepted for result in results)
    threads = " with one thread" if device == "cpu" else ""
    _say(
        f"{meter.prompt_tokens} prompt tokens at {meter.prompt_rate:.1f} tokens/s, {meter.new_tokens} new at "
        f"{meter.decode_rate:.1f} tokens/s on {device}{threads}; {kept} of {drafts} drafts kept"
    )


def _say(line: str) -> None:
    out.print(f"  {line}", highlight=False, markup=False)
