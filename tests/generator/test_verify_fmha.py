"""The judge of fmha passes an honest tiled kernel and finds each of the mistakes that look like attention."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.generator.verify import cases, run_case
from dsv4.generator.verify.operators.fmha import expected_float64, visible
from dsv4.runtime.artifact import Argument, Contract

TILE_M, TILE_N = 64, 48
CONFIG = {"tile_m": TILE_M, "tile_n": TILE_N}


def contract() -> Contract:
    tensor = {"kind": "tensor", "dtype": "bf16"}
    names = ("q", "k", "v")
    return Contract(
        dims={},
        arguments=(
            *(Argument(name=name, **tensor) for name in names),
            Argument(name="sink", kind="tensor", dtype="f32", optional=True),
            Argument(name="o", role="output", **tensor),
            Argument(name="lse", kind="tensor", dtype="f32", role="output"),
            Argument(name="softmax_scale", kind="scalar", dtype="f32"),
        ),
    )


def tiled_kernel(causal: bool, mistake: str = ""):
    """Online softmax over KV tiles with bf16 probabilities, as a GPU kernel does it; with one mistake planted."""

    def kernel(q, k, v, sink, o, lse, scale):
        heads, group = q.shape[2], q.shape[2] // k.shape[2]
        kv_head = torch.arange(heads) % k.shape[2] if mistake == "kv head modulo" else torch.arange(heads) // group
        qh = q.float().transpose(1, 2)
        kh, vh = (t.float().transpose(1, 2)[:, kv_head] for t in (k, v))
        keys = k.shape[1]
        seen = visible(q.shape[1], keys, causal, q.device)
        if mistake == "top-left causal" and causal:
            seen = torch.ones_like(seen).tril(0)
        high = torch.full((*qh.shape[:3], 1), -math.inf)
        total = torch.zeros_like(high)
        acc = torch.zeros_like(qh)
        for first in range(0, keys, TILE_N):
            pick = slice(0, TILE_N) if mistake == "always tile 0" else slice(first, first + TILE_N)
            rows = kh[:, :, pick]
            logits = (qh @ rows.transpose(2, 3)) * scale
            if not (mistake == "no mask on the last tile" and first + TILE_N >= keys):
                logits = logits.masked_fill(~seen[:, pick], -math.inf)
            new = torch.maximum(high, logits.amax(-1, keepdim=True))
            if mistake == "one maximum for all rows" and q.shape[1]:
                new = torch.maximum(high, logits.amax((2, 3), keepdim=True))
            safe = torch.where(torch.isinf(new), 0.0, new)
            p = torch.exp(logits - safe)
            correction = torch.exp(high - safe)
            total = total * correction + p.sum(-1, keepdim=True)
            acc = (acc if mistake == "no rescale" else acc * correction) + p.bfloat16().float() @ vh[:, :, pick]
            high = new
        raw = torch.where(torch.isinf(high), 0.0, high) + total.log()
        if sink is not None:
            total = total + torch.exp(sink.float()[None, :, None, None] - torch.where(torch.isinf(high), 0.0, high))
        if mistake == "lse includes the sink" and sink is not None:
            raw = torch.where(torch.isinf(high), 0.0, high) + total.log()
        out = torch.where(torch.isinf(high), 0.0, acc / total).transpose(1, 2)
        if mistake == "one wrong row":
            out[-1:, -1:] *= 1.02
        if mistake == "nan in empty rows":
            out = torch.where(torch.isinf(high).transpose(1, 2), math.nan, out)
        o.copy_(out)
        lse.copy_(raw.squeeze(-1) * (1.0 / math.log(2) if mistake == "lse in log2" else 1.0))
        if mistake == "last row unwritten" and o.numel():
            o[-1, -1] = torch.tensor(0x7FA5, dtype=torch.int16).view(torch.bfloat16)
        if mistake == "writes behind the output":
            o.as_strided((o.numel() + 1,), (1,), o.storage_offset())[-1] = 0.0
        if mistake == "changes an input" and q.numel():
            q.mul_(2)

    return kernel


def run(dims, variant, mistake=""):
    made = cases("fmha", dims, variant, config=CONFIG, seed=3, empty=True)
    kernel = tiled_kernel(variant["causal"], mistake)
    return [(case, run_case(kernel, contract(), case)) for case in made]


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("has_sink", [False, True])
def test_an_honest_kernel_passes_every_case(columns, causal, has_sink):
    for case, verdict in run({"D": columns}, {"causal": causal, "has_sink": has_sink}):
        assert verdict.ok, (case.name, verdict.findings)
        assert verdict.cosine >= 0.99999


@pytest.mark.parametrize(
    ("mistake", "word"),
    [
        ("always tile 0", "rows"),
        ("no rescale", "rows"),
        ("one maximum for all rows", ""),
        ("kv head modulo", "rows"),
        ("top-left causal", ""),
        ("no mask on the last tile", ""),
        ("one wrong row", "rows"),
        ("nan in empty rows", "not finite"),
        ("lse in log2", "lse"),
        ("lse includes the sink", "lse"),
        ("last row unwritten", "never written"),
        ("writes behind the output", "outside"),
        ("changes an input", "changed an input"),
    ],
)
def test_a_planted_mistake_is_found(mistake, word):
    failed = [(case, v) for case, v in run({"D": 64}, {"causal": True, "has_sink": True}, mistake) if not v.ok]
    assert failed, mistake
    findings = [finding for _, verdict in failed for finding in verdict.findings]
    assert any(word in finding for finding in findings), findings
    assert all("\n" not in finding for finding in findings)


def test_the_cases_cover_the_shapes_that_matter():
    made = cases("fmha", {"D": 64}, {"causal": False}, config=CONFIG, empty=True)
    shapes = [(case.inputs["q"].shape, case.inputs["k"].shape) for case in made]
    tiles = {-(-k[1] // TILE_N) for _, k in shapes}
    assert {0, 1, 2, 3, 5, 17} <= tiles
    assert any(k[1] % TILE_N for _, k in shapes) and any(k[1] % TILE_N == 0 and k[1] for _, k in shapes)
    assert sum(q[1] == k[1] for q, k in shapes) == 1  # the 1 × 1 case
    groups = {q[2] // k[2] for q, k in shapes}
    assert 1 in groups and len(groups) >= 3
    assert any(q[1] == 0 for q, _ in shapes) and any(q[1] > k[1] > 0 for q, k in shapes)


def naive_float64(q, k, v, sink, causal):
    """The formula without chunks, tiles or special cases, but for rows without keys."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (t.double().transpose(1, 2) for t in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    e = torch.exp(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5) * visible(q.shape[2], k.shape[2], causal, q.device)
    total = e.sum(-1, keepdim=True)
    below = total if sink is None else total + torch.exp(sink.double())[None, :, None, None]
    return torch.where(total > 0, e @ v / below, 0.0).transpose(1, 2), total.log().squeeze(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("has_sink", [False, True])
def test_the_reference_agrees_with_the_bare_formula(causal, has_sink):
    for case in cases("fmha", {"D": 64}, {"causal": causal, "has_sink": has_sink}, config=CONFIG, empty=True):
        i = case.inputs
        out, lse = naive_float64(i["q"], i["k"], i["v"], i.get("sink"), causal)
        assert torch.allclose(case.expected["o"], out, rtol=1e-10, atol=1e-12), case.name
        assert torch.allclose(case.expected["lse"], lse, rtol=1e-10, atol=1e-10), case.name


def test_expected_values_by_hand():
    """One key with logit 0 and a sink of 1: the weight is 1/(1+e) = 0.26894 (dsv4-reference §7.2), the LSE is 0."""
    q = torch.zeros(1, 1, 1, 4)
    k, v = torch.ones(1, 1, 1, 4), torch.full((1, 1, 1, 4), 2.0)
    out, lse = expected_float64(q, k, v, torch.tensor([1.0]), causal=False, scale=0.5)
    assert torch.allclose(out, torch.full_like(out, 2 * 0.2689414213699951), atol=1e-12, rtol=0)
    assert lse.item() == 0.0


def test_rising_and_falling_cases_move_the_row_maximum_from_tile_to_tile():
    for case in cases("fmha", {"D": 64}, {"causal": False}, config=CONFIG, empty=True):
        q, k = case.inputs["q"], case.inputs["k"]
        if k.shape[1] < 3 * TILE_N or ("rising" not in case.name and "falling" not in case.name):
            continue
        logits = q[:, :, 0].double() @ k[:, :, 0].double().transpose(1, 2) * 64**-0.5
        maxima = torch.stack([t.amax(-1) for t in logits.split(TILE_N, dim=-1)]).mean((1, 2))
        steps = maxima.diff()
        assert (steps > 0.2).all() if "rising" in case.name else (steps < -0.2).all(), case.name
