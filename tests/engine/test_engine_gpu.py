"""The engine on a GPU: the CPU's text, recorded steps or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, SamplingOptions
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.model.numerics import Numerics
from dsv4.runtime.model.presets import FLASH, TINY
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.model.weights import map_weights
from dsv4.runtime.weight import Format
from tests.engine.small_engine import alone, text
from tests.engine.small_engine import model as small
from tests.model.tiny_model import Maker, prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:PyTorch serves"),
]
GREEDY = SamplingOptions(max_new_tokens=40)


def on_gpu(model: Transformer) -> Transformer:
    weights = map_weights(model.weights, weight=lambda w: w.to("cuda"), tensor=lambda t: t.to("cuda"))
    return Transformer(model.config, weights, numerics=model.precision.numerics)


def engine(model: Transformer, *, sequences: int = 3, speculate: bool = False, graphs: bool = True) -> Engine:
    kv, index = formats_for(model.precision.numerics, model.config)
    settings = CacheSettings(sequences=sequences, block=128, positions_max=512, kv=kv, index=index)
    layout = CacheLayout.holding(model.config, settings, model.precision, 512)
    return Engine(model, PagedCache(layout, "cuda"), speculate=speculate, graphs=graphs)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_the_text_of_the_cpu(speculate: bool, graphs: bool) -> None:
    options = [GREEDY, replace(GREEDY, temperature=0.8, top_p=0.9, seed=3), replace(GREEDY, max_new_tokens=9)]
    requests = [Request(text(length), each) for length, each in zip((5, 120, 30), options, strict=True)]
    running = engine(on_gpu(small()), speculate=speculate, graphs=graphs)
    for request, result in zip(requests, running.generate(requests), strict=True):
        assert result.tokens == alone(request.prompt, request.options, speculate=speculate).tokens
    assert (running._graphs is not None and len(running._graphs._graphs) > 0) == graphs


@pytest.mark.parametrize("numerics", [Numerics.OFFICIAL, Numerics.ENGINE])
def test_quantised_steps_are_recorded(numerics: Numerics) -> None:
    maker = Maker(TINY, dtype=torch.bfloat16, dense=Format.FP8_BLOCK, routed=Format.MXFP4)
    model = on_gpu(Transformer(TINY, maker.model(), numerics=numerics))
    requests = [Request(prompt(TINY, length), GREEDY) for length in (3, 140)]
    texts = [engine(model, speculate=True, graphs=graphs).generate(requests) for graphs in (True, False)]
    assert [result.tokens for result in texts[0]] == [result.tokens for result in texts[1]]


def test_one_layer_of_flash() -> None:
    """A CSA layer as large as the real one but for the number of experts: prefill in chunks, then recorded steps."""
    config = FLASH.replace(
        num_hidden_layers=1,
        num_nextn_predict_layers=0,
        compress_ratios=(4,),
        num_hash_layers=0,
        vocab_size=4096,
        n_routed_experts=64,
    )
    with torch.device("cuda"):
        maker = Maker(config, dtype=torch.bfloat16, dense=Format.FP8_BLOCK, routed=Format.MXFP4)
        maker.generator = torch.Generator(device="cuda").manual_seed(0)
        weights = maker.model()
    model = Transformer(config, weights, numerics=Numerics.ENGINE)
    running = engine(model, sequences=2)
    results = running.generate([Request(prompt(config, 300), GREEDY), Request(prompt(config, 7), GREEDY)])
    assert [len(result.tokens) for result in results] == [40, 40]
    assert running._graphs is not None and running._graphs._graphs
