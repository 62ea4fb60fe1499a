"""Ready to be accelerated: operators only through ``runtime/ops``, steps that torch.compile and CUDA graphs take."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsv4
from dsv4.runtime.model import transformer
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.presets import FLASH
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.model.weights import ExpertWeights, MoeWeights, map_weights
from dsv4.runtime.pool import PoolFormat
from dsv4.runtime.weight import Format, Weight
from tests.model.tiny_model import SMALL, TINY, Maker, prompt

ALLOWED = {"Compression", "Fake", "IndexCode", "Rule", "rope_frequencies"}
"""What the model may take from the references: types, and the frequencies, which are computed once."""


def test_the_model_takes_no_arithmetic_from_the_references() -> None:
    folder = Path(transformer.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsv4.runtime.reference"):
                names = {alias.name for alias in node.names}
                assert names <= ALLOWED, f"{path.name} imports {names - ALLOWED} from {node.module}"


def test_every_operator_of_a_step_is_traced() -> None:
    model = Transformer(SMALL, Maker(SMALL).model())
    cache = ContiguousCache(SMALL, positions_max=140)
    step = Step.of([Chunk(0, 0, prompt(SMALL, 140))])
    with dsv4.trace_dispatch() as calls:
        forward = model.forward(step, cache)
        main = len(calls)
        model.draft(forward.streams, step.tokens, step, cache)
    counts: dict[str, int] = {}
    for call in calls[:main]:
        counts[call.op] = counts.get(call.op, 0) + 1
        assert call.implementation == "reference"
    layers, csa, hca = 5, 2, 1
    assert counts == {
        "rope_table": 2 + 2,
        "embed": 1,
        "mhc_pre": layers,
        "mhc_post_pre": layers,
        "mhc_post": layers,
        "rms_norm": layers,
        "linear": (4 + 3) * layers + 2 * (2 * csa + hca) + 2 * csa,
        "q_norm_rope_kv_insert": layers,
        "compressor": 2 * csa + hca,
        "indexer_q_folded": csa,
        "indexer_scores": csa,
        "topk": csa,
        "sparse_attention": layers,
        "inverse_rope_quant": layers,
        "grouped_output": layers,
        "router": layers,
        "experts": layers,
        "swiglu_quant": layers,
        "moe_combine": layers,
        "mhc_head": 1,
        "lm_head": 1,
    }
    assert {call.op for call in calls[main:]} <= set(counts)


def test_short_contexts_are_not_scored() -> None:
    model = Transformer(SMALL, Maker(SMALL).model())
    cache = ContiguousCache(SMALL, positions_max=64)
    for length, scored in ((35, False), (36, True)):
        with dsv4.trace_dispatch() as calls:
            model.forward(Step.of([Chunk(0, 0, prompt(SMALL, length))]), cache)
        assert any(call.op == "indexer_scores" for call in calls) == scored


def test_decoding_step_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    config = SMALL.replace(num_hidden_layers=1, compress_ratios=(4, 0), num_hash_layers=1)
    model = Transformer(config, Maker(config).model())
    tokens = prompt(config, 45)
    caches = [ContiguousCache(config, positions_max=64) for _ in range(2)]
    for cache in caches:
        model.forward(Step.of([Chunk(0, 0, tokens[:42])]), cache)
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager", dynamic=False)
    for position in (42, 43, 44):
        step = Step.of([Chunk(0, position, tokens[position : position + 1])], reach=64)
        with torch.compiler.set_stance("default" if position == 42 else "fail_on_recompile"):
            got = compiled(step, caches[0])
        for one, other in zip(got, model.forward(step, caches[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def on_gpu(container):  # type: ignore[no-untyped-def]
    return map_weights(container, weight=lambda weight: weight.to("cuda"), tensor=lambda tensor: tensor.cuda())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::dsv4.Dsv4Warning")
@pytest.mark.parametrize("numerics", list(Numerics))
def test_decoding_is_captured_in_a_cuda_graph(numerics: Numerics) -> None:
    """Two sequences decode 70 tokens past the boundary at 128, every step a replay of one graph."""
    exact = numerics is Numerics.EXACT
    dtype = torch.float32 if exact else torch.bfloat16
    maker = Maker(TINY, dtype=dtype, dense=Format.FP8_BLOCK, routed=Format.MXFP4)
    model = Transformer(TINY, on_gpu(maker.model()), numerics=numerics)
    packed = numerics is Numerics.ENGINE
    caches = [
        ContiguousCache(
            TINY,
            slots=3,
            positions_max=400,
            ring=300,
            precision=Precision(numerics),
            kv=PoolFormat.KV_FP8 if packed else PoolFormat.PLAIN,
            index=PoolFormat.INDEX_FP8 if packed else PoolFormat.PLAIN,
            device="cuda",
        )
        for _ in range(2)
    ]
    first = {2: 90, 0: 290}
    texts = {slot: prompt(TINY, 400, slot) for slot in first}
    for cache in caches:
        for slot, start in first.items():
            for begin in range(0, start, 100):
                tokens = texts[slot][begin : min(begin + 100, start)]
                model.forward(Step.of([Chunk(slot, begin, tokens)], device="cuda"), cache)

    def chunks(number: int) -> list[Chunk]:
        return [Chunk(slot, start + number, [texts[slot][start + number]]) for slot, start in first.items()]

    static = Step.of([*chunks(0), Chunk(-1, 0, [0])], reach=400, device="cuda")
    warm = replace(static, slots=torch.full_like(static.slots, -1))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        model.forward(warm, caches[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = model.forward(static, caches[0])
    for number in range(70):
        step = Step.of([*chunks(number), Chunk(-1, 0, [0])], reach=400, device="cuda")
        static.tokens.copy_(step.tokens)
        static.positions.copy_(step.positions)
        graph.replay()
        expected = model.forward(step, caches[1])
        error = (replayed.logits - expected.logits)[:2].abs().max() / expected.logits.abs().max()
        assert error < 1e-5, (number, error)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::dsv4.Dsv4Warning")
def test_cpu_and_gpu_agree() -> None:
    weights = Maker(SMALL).model()
    found = []
    for device in ("cpu", "cuda"):
        model = Transformer(SMALL, weights if device == "cpu" else on_gpu(weights))
        cache = ContiguousCache(SMALL, positions_max=270, device=device)
        step = Step.of([Chunk(0, 0, prompt(SMALL, 270))], device=device)
        forward = model.forward(step, cache)
        found.append((*forward, *model.draft(forward.streams, step.tokens, step, cache)))
    for one, other in zip(*found, strict=True):
        assert (one - other.cpu()).abs().max() < 2e-5 * one.abs().max()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::dsv4.Dsv4Warning")
@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_a_layer_of_flash(ratio: int) -> None:
    """Real shapes, random codes: prefill of 600 tokens and a decoding step, in the kernels' numerics."""
    config = FLASH.replace(num_hidden_layers=1, compress_ratios=(ratio, 0), num_hash_layers=0, vocab_size=1024)
    small_moe = config.replace(n_routed_experts=8)
    weights = on_gpu(Maker(small_moe, dtype=torch.bfloat16, dense=Format.FP8_BLOCK, routed=Format.MXFP4).model())

    def stack(rows: int, columns: int) -> Weight:
        shape = (config.n_routed_experts, rows, columns)
        codes = torch.randint(256, (*shape[:2], columns // 2), dtype=torch.uint8, device="cuda")
        scale = torch.full((*shape[:2], columns // 32), 121, dtype=torch.uint8, device="cuda")
        return Weight(Format.MXFP4, codes, scale.view(torch.float8_e8m0fnu))

    width, inner = config.hidden_size, config.moe_intermediate_size
    experts = ExpertWeights(w1=stack(inner, width), w3=stack(inner, width), w2=stack(width, inner))
    router = replace(
        weights.layers[0].moe.router,
        weight=torch.randn(config.n_routed_experts, width, device="cuda").mul(width**-0.5).bfloat16(),
        bias=torch.randn(config.n_routed_experts, device="cuda") * 0.1,
    )
    layer = replace(weights.layers[0], moe=MoeWeights(router, experts, weights.layers[0].moe.shared))
    model = Transformer(config, replace(weights, layers=(layer,), mtp=None), numerics=Numerics.ENGINE)
    cache = ContiguousCache(
        config,
        positions_max=1024,
        precision=model.precision,
        kv=PoolFormat.KV_FP8,
        index=PoolFormat.INDEX_FP8,
        device="cuda",
    )
    tokens = prompt(config, 601)
    forward = model.forward(Step.of([Chunk(0, 0, tokens[:600])], device="cuda"), cache)
    assert forward.streams.shape == (600, 4, 4096) and forward.streams.isfinite().all()
    decoded = model.forward(Step.of([Chunk(0, 600, tokens[600:])], device="cuda"), cache)
    assert decoded.logits.shape == (1, 1024) and decoded.logits.isfinite().all()
