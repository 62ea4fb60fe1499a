"""What a model's steps call, derived from its configuration, is what the engine's steps call on a CPU."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dsv4.generator.console import UsageError
from dsv4.generator.spec import load_op
from dsv4.runtime import dispatch
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.engine.engine import Engine
from dsv4.runtime.engine.options import Request, SamplingOptions
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.model.numerics import Numerics
from dsv4.runtime.model.presets import FLASH, NARROW
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.ops import plain
from dsv4.runtime.weight import Format
from dsv4.tuner import coverage, step_share
from dsv4.tuner import model_jobs as model_jobs_module
from dsv4.tuner.coverage import Asked
from dsv4.tuner.model_calls import Serving, StepCalls, config_of, model_steps
from dsv4.tuner.model_jobs import measured_sizes, model_jobs
from dsv4.tuner.step_share import LAUNCH_US, predicted_us, work_of
from tests.model.tiny_model import Maker, prompt

CONFIG = NARROW.replace(index_topk=8)
PROMPT = 48
"""Past what CSA reads without choosing (8 entries of 4 tokens)."""
OF_THE_CACHE = {"N0", "N1", "S0", "S1", "R"}
"""Sizes of pools and states: how many sequences and tokens a cache holds, whatever the step."""


@pytest.fixture(scope="module")
def narrow() -> Transformer:
    import torch

    weights = Maker(CONFIG, dtype=torch.bfloat16, dense=Format.FP8_BLOCK, routed=Format.MXFP4).model()
    return Transformer(CONFIG, weights, numerics=Numerics.ENGINE)


def engine_on(model: Transformer, *, speculate: bool) -> Engine:
    kv, index = formats_for(Numerics.ENGINE, CONFIG)
    settings = CacheSettings(sequences=2, drafts=1, step_tokens=PROMPT, positions_max=4096, kv=kv, index=index)
    cache = PagedCache(CacheLayout.holding(CONFIG, settings, model.precision, 4096))
    return Engine(model, cache, chunk=PROMPT, speculate=speculate)


def asked_for(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, from now on, the kernels that calls on the CPU ask for, as if it were a GPU."""
    counts: Counter[str] = Counter()
    make = dispatch.make_entry

    def watched(key, request, *, stages=(), adapt=None, table_of="", **more):
        entry = make(key, request, stages=stages, adapt=adapt, table_of=table_of, **more)
        wanted = [(each.op, each) for each in (request, *stages)] if adapt else [(table_of or request.op, request)]

        def counted(*arguments, **options):
            counts.update(spelled(op, {**each.dims, **each.sizes}, each.variant) for op, each in wanted)
            return entry(*arguments, **options)

        table = dispatch.table(table_of or request.op)
        if key in table:
            table[key] = counted
        return counted

    monkeypatch.setattr(plain, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "make_entry", watched)
    dispatch.reset()
    return counts


def spelled(op, sizes, variant) -> str:
    return canonical_json([op, {n: s for n, s in sizes.items() if n not in OF_THE_CACHE}, variant])


def derived(serving: Serving, step: int) -> dict[str, int]:
    found = model_steps(CONFIG, serving)[step]
    return {spelled(each.op, each.sizes, each.variant): each.times for each in found.calls}


@pytest.mark.parametrize("speculate", [False, True])
def test_the_derived_calls_are_those_of_the_engine(narrow, speculate, monkeypatch):
    engine = engine_on(narrow, speculate=speculate)
    drafts = 1 if speculate else 0
    counts = asked_for(monkeypatch)
    engine.submit(Request(prompt(CONFIG, PROMPT, 1), SamplingOptions(max_new_tokens=3)))
    engine.step()
    prefill = dict(counts)
    counts.clear()
    engine.step()
    decode = dict(counts)
    monkeypatch.undo()
    dispatch.reset()
    assert derived(Serving((1,), (PROMPT,), drafts, PROMPT), 1) == prefill
    assert derived(Serving((1,), (PROMPT + 1 + drafts,), drafts), 0) == decode
    assert len(prefill) > 30 and sum(decode.values()) > 80


def test_flash_calls_its_kernels_once_for_each_layer_of_their_kind():
    (decode, prefill) = model_steps(FLASH, Serving((64,), (8192,), drafts=1))
    assert (decode.tokens, decode.sequences) == (128, 64) and (prefill.tokens, prefill.sequences) == (2048, 1)

    def times(step, op: str, **flags) -> int:
        return sum(c.times for c in step.calls if c.op == op and flags.items() <= {**c.sizes, **c.variant}.items())

    csa, hca, layers = 21, 20, 44  # with the MTP layer, which has a window only
    assert times(decode, "sparse_attention_decode", H=64, K1=512) == csa
    assert times(decode, "sparse_attention_decode", H=64, K1=8192 // 128) == hca
    assert times(decode, "sparse_attention_decode") == times(decode, "mhc_post", T=128, d=4096) == layers
    assert times(decode, "indexer_q", T=128) == csa and times(decode, "compressor") == 2 * csa + hca
    assert times(decode, "sample", R=64, V=129280) == 1 and times(decode, "experts", E=256, I=2048) == layers
    jobs = model_jobs([decode, prefill], "sm_90a")
    for step in range(2):
        assert sum(job.shares[step] or 0.0 for job in jobs) == pytest.approx(1.0)
    assert [job.share for job in jobs] == sorted((job.share for job in jobs), reverse=True)
    assert jobs[0].op == "experts" and jobs[0].obstacle == "no kernel is made" and not jobs[0].sizes
    rms = next(job for job in jobs if job.op == "rms_norm" and job.dims == {"d": 1024})
    assert rms.sizes == [{"T": 128}, {"T": 2048}] and rms.calls == [layers, layers] and rms.obstacle is None
    assert rms.buckets == [{"T": (0, 512)}, {"T": (513, None)}]
    attention = next(job for job in jobs if job.op == "sparse_attention_decode" and job.variant["extra"] == "rows")
    assert len(attention.buckets) == len(attention.sizes) == 4
    assert not json.dumps([job.target.dims for job in jobs if job.obstacle is None]).count("null")


def test_a_kernel_that_an_arch_has_not_is_named(monkeypatch):
    asked = Asked(op="rms_norm", sizes={"T": 8, "d": 4096}, variant={"pdl": False}, times=3)
    spec = load_op("rms_norm")
    alone = spec.model_copy(update={"template": {"sm_90a": spec.template["sm_90a"]}})
    for module in (coverage, model_jobs_module, step_share):
        monkeypatch.setattr(module, "load_op", lambda op: alone)
    (job,) = model_jobs([StepCalls("decode", 8, 8, (asked,))], "sm_100a")
    assert job.obstacle == "no kernel is made for sm_100a" and job.share == 1.0 and job.calls == [3]


def test_a_size_that_a_kernel_cannot_have_is_told():
    asked = Asked(op="rms_norm", sizes={"T": 8, "d": 4100}, variant={"pdl": False})
    (job,) = model_jobs([StepCalls("decode", 8, 8, (asked,))], "sm_90a")
    assert "d: found 4100" in job.obstacle and "multiple" in job.obstacle and not job.sizes


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        (Serving(batches=(0,)), "--batch: found 0; valid: 1 to"),
        (Serving(contexts=(1,)), "--context: found 1; valid: 2 to 1048576"),
        (Serving(drafts=2), "--drafts: found 2; valid: 0 to 1"),
        (Serving(chunk=3), "--chunk: found 3; valid: 9 to"),
    ],
)
def test_what_cannot_be_served_is_refused(serving, words):
    with pytest.raises(UsageError, match=words):
        model_steps(NARROW, serving)
    with pytest.raises(UsageError, match="--model: found 'huge'; valid: flash, pro, tiny, or a config"):
        config_of("huge")


def test_a_model_comes_from_its_config_too(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(NARROW.to_hf()))
    assert config_of(str(file)) == NARROW
    file.write_text("{}")
    with pytest.raises(UsageError, match=r"--model: .*model_type: found None"):
        config_of(str(file))


def test_predicted_times_follow_bytes_and_products():
    rms = Asked(op="rms_norm", sizes={"T": 8192, "d": 4096}, variant={"pdl": False})
    moved = 4 * 8192 * 4096 + 2 * 4096
    assert predicted_us(rms, "sm_90a") == pytest.approx(LAUNCH_US + moved / 3.35e6)
    variant = {"x": "float8_e4m3fn_by_128", "weight": "fp8_block", "dtype": "float32", "out_dtype": "bfloat16"}
    large = Asked(op="linear", sizes={"rows": 8192, "i": 4096, "o": 8192}, variant=variant)
    assert predicted_us(large, "sm_90a") == pytest.approx(LAUNCH_US + 2 * 8192 * 4096 * 8192 / 1978.9e6)
    one = {"T": 1, "k": 6, "E": 256, "I": 2048, "d": 4096}
    flags = {"w1": "mxfp4", "rule": "fp8_32"}
    few, many = (work_of(Asked(op="experts", sizes={**one, "T": t}, variant=flags), "sm_90a") for t in (1, 4096))
    expert = 3 * 2048 * 4096 * 0.53125
    assert few.bytes == pytest.approx(6 * expert, rel=0.01) and few.fp8
    assert many.bytes == pytest.approx(256 * expert + 4096 * 7 * 4096 * 2)
    assert predicted_us(Asked(op="unheard_of", sizes={}, variant={}), "sm_90a") is None
    assert predicted_us(Asked(op="linear", sizes={"i": 1}, variant={}), "sm_90a") is None


def test_a_workload_takes_the_calls_sizes_and_the_steps_lengths():
    (decode, prefill) = model_steps(NARROW, Serving((4,), (512,), drafts=1, chunk=96))
    (call,) = [each for each in decode.calls if each.op == "compressor" and each.sizes["m"] == 128]
    assert measured_sizes(call, decode) == {"T": 8, "length": 2, "spare": 1}
    (call,) = [each for each in prefill.calls if each.op == "compressor" and each.sizes["m"] == 128]
    assert measured_sizes(call, prefill) == {"T": 96, "length": 96, "spare": 1}
