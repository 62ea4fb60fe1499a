"""Router, experts and their sum against dsv4-reference §9 written out route by route."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from dsv4.runtime.reference import experts as module
from dsv4.runtime.reference.experts import Rule, experts
from dsv4.runtime.reference.moe_combine import moe_combine
from dsv4.runtime.reference.quantize import (
    fake_quantize_fp8,
    fp8_weight,
    mxfp4_weight,
    nvfp4_weight,
    quantize_fp8,
    quantize_nvfp4,
)
from dsv4.runtime.reference.router import router
from dsv4.runtime.reference.swiglu_quant import swiglu_quant
from dsv4.runtime.weight import Quantized, Weight

F64 = torch.float64


def affinity(logit: float) -> float:
    return math.sqrt(math.log1p(math.exp(logit)))


def test_check_values_of_the_affinity() -> None:
    logits = torch.tensor([[-3, -1, 0, 0.5, 1, 2, 4, 25]], dtype=F64)
    expected = [0.22042539, 0.55969785, 0.83255461, 0.98695339, 1.1459763, 1.45839913, 2.00453235, 5.0]
    ids, weights = router(logits, torch.eye(8, dtype=F64), k=8, factor=sum(expected), dtype=F64)
    assert ids.tolist() == [[7, 6, 5, 4, 3, 2, 1, 0]]
    assert weights[0].flip(0).tolist() == pytest.approx(expected, rel=2e-8)


def test_dense_router() -> None:
    torch.manual_seed(0)
    y, weight, bias = torch.randn(20, 12, dtype=F64), torch.randn(9, 12, dtype=F64), torch.randn(9, dtype=F64)
    ids, weights = router(y, weight, k=3, factor=2.5, bias=bias, dtype=F64)
    assert ids.dtype == torch.int32
    for t in range(20):
        a = [affinity(float(weight[e] @ y[t])) for e in range(9)]
        chosen = sorted(range(9), key=lambda e: (-(a[e] + bias[e].item()), e))[:3]
        assert ids[t].tolist() == chosen
        total = sum(a[e] for e in chosen)  # without the bias
        assert weights[t].tolist() == pytest.approx([a[e] / total * 2.5 for e in chosen], rel=1e-12)
        assert weights[t].sum().item() == pytest.approx(2.5)


def test_equal_affinities_go_to_the_lower_index() -> None:
    ids, _ = router(torch.zeros(1, 4), torch.zeros(6, 4), k=3, factor=1.0, bias=torch.zeros(6))
    assert ids.tolist() == [[0, 1, 2]]


def test_hash_router_weighs_with_the_learned_gate() -> None:
    torch.manual_seed(1)
    y, weight = torch.randn(4, 12, dtype=F64), torch.randn(9, 12, dtype=F64)
    table = torch.stack([torch.randperm(9)[:3] for _ in range(30)])
    tokens = torch.tensor([29, 0, 7, 7])
    ids, weights = router(y, weight, k=3, factor=1.5, tid2eid=table, tokens=tokens, dtype=F64)
    assert torch.equal(ids.long(), table[tokens])
    for t in range(4):
        a = [affinity(float(weight[e] @ y[t])) for e in ids[t].tolist()]
        assert weights[t].tolist() == pytest.approx([value / sum(a) * 1.5 for value in a], rel=1e-12)
    assert not torch.allclose(weights, torch.full_like(weights, 0.5))  # not uniform


def test_no_tokens() -> None:
    ids, weights = router(torch.zeros(0, 4), torch.zeros(6, 4), k=3, factor=1.0, bias=torch.zeros(6))
    assert ids.shape == weights.shape == (0, 3)
    stack = Weight.plain(torch.randn(6, 8, 4)), Weight.plain(torch.randn(6, 8, 4)), Weight.plain(torch.randn(6, 4, 8))
    for sync_free in (False, True):
        assert experts(torch.zeros(0, 4), ids, weights, *stack, limit=10.0, sync_free=sync_free).shape == (0, 3, 4)
    assert moe_combine(torch.zeros(0, 3, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_gate_is_clamped_from_above_only() -> None:
    gate = torch.tensor([[-50.0, -12.0, 3.0, 12.0, 50.0, 1.0]])
    up = torch.tensor([[-50.0, 12.0, -3.0, -12.0, 50.0, 0.5]])
    got = swiglu_quant(gate, up, limit=10.0, dtype=F64, out_dtype=F64)
    expected = []
    for g, u in zip(gate[0].tolist(), up[0].tolist(), strict=True):
        g, u = min(g, 10.0), max(-10.0, min(10.0, u))
        expected.append(g / (1 + math.exp(-g)) * u)
    assert isinstance(got, torch.Tensor) and got[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert abs(got[0, 1].item()) < 1e-3 < abs(got[0, 3].item())


def test_route_weight_comes_before_the_quantisation() -> None:
    torch.manual_seed(2)
    gate, up, route = torch.randn(3, 64), torch.randn(3, 64), torch.rand(3)
    plain = swiglu_quant(gate, up, route, limit=10.0)
    assert isinstance(plain, torch.Tensor)
    by_hand = torch.nn.functional.silu(gate) * up * route[:, None]
    torch.testing.assert_close(plain, by_hand)
    got = swiglu_quant(gate.bfloat16(), up.bfloat16(), route, limit=10.0, block=32)
    exact = swiglu_quant(gate.bfloat16(), up.bfloat16(), route, limit=10.0, out_dtype=torch.float32)
    assert isinstance(got, Quantized) and got.scale.shape == (3, 2) and isinstance(exact, torch.Tensor)
    assert torch.equal(got.dequantize(), quantize_fp8(exact, 32).dequantize())


Stack = tuple[Weight, Weight, Weight]


def stacks(make: Callable[[torch.Tensor], Weight], count: int = 5, inner: int = 64, width: int = 128) -> Stack:
    torch.manual_seed(3)
    shapes = ((count, inner, width), (count, inner, width), (count, width, inner))
    return tuple(make(torch.randn(shape) * shape[-1] ** -0.5 * 3) for shape in shapes)  # type: ignore[return-value]


def routes(tokens: int, count: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([torch.randperm(count)[:k] for _ in range(tokens)]).int()
    return ids, torch.rand(tokens, k)


@pytest.mark.parametrize("sync_free", [False, True])
def test_each_route_through_its_expert(sync_free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_BYTES_MAX", 3 * 12 * 64 * 128)
    w1, w3, w2 = stacks(Weight.plain)
    y, (ids, route) = torch.randn(7, 128, dtype=F64) * 4, routes(7, 5, 3)
    got = experts(y, ids, route, w1, w3, w2, limit=10.0, sync_free=sync_free, dtype=F64)
    clamped = 0
    for t in range(7):
        for i, expert in enumerate(ids[t].tolist()):
            gate, up = (w[expert].dequantize(F64) @ y[t] for w in (w1, w3))
            clamped += int((gate > 10).sum() + (up.abs() > 10).sum())
            gate, up = gate.clamp(max=10), up.clamp(-10, 10)
            h = gate / (1 + (-gate).exp()) * up * route[t, i].double()
            torch.testing.assert_close(got[t, i], w2[expert].dequantize(F64) @ h, rtol=0, atol=1e-12)
    assert clamped > 10


def with_input_scales(values: torch.Tensor) -> Weight:
    return nvfp4_weight(values, input_scale=torch.linspace(0.004, 0.006, values.shape[0]))


@pytest.mark.parametrize("sync_free", [False, True])
@pytest.mark.parametrize(
    ("make", "rule"),
    [(fp8_weight, "fp8_128"), (mxfp4_weight, "fp8_128"), (mxfp4_weight, "fp8_32"), (with_input_scales, "nvfp4")],
)
@pytest.mark.parametrize("round_hidden", [False, True])
def test_quantised_experts(
    make: Callable[[torch.Tensor], Weight], rule: Rule, round_hidden: bool, sync_free: bool
) -> None:
    weights = stacks(make)
    bf16 = torch.bfloat16
    y, (ids, route) = torch.randn(4, 128).to(bf16), routes(4, 5, 3)
    got = experts(
        y,
        ids,
        route,
        *weights,
        limit=10.0,
        rule=rule,
        stage_dtype=bf16,
        round_hidden=round_hidden,
        sync_free=sync_free,
        dtype=F64,
        out_dtype=F64,
    )

    def rounded(x: torch.Tensor, weight: Weight) -> torch.Tensor:
        if rule == "nvfp4":
            assert weight.input_scale is not None
            return quantize_nvfp4(x, weight.input_scale).dequantize(F64)
        return fake_quantize_fp8(x.double(), 128 if rule == "fp8_128" else 32)

    for t in range(4):
        for i, expert in enumerate(ids[t].tolist()):
            w1, w3, w2 = (w[expert] for w in weights)
            gate, up = ((w.dequantize(F64) @ rounded(y[t], w1)).to(bf16).double() for w in (w1, w3))
            h = torch.nn.functional.silu(gate.clamp(max=10)) * up.clamp(-10, 10) * route[t, i].double()
            h = rounded(h.to(bf16) if round_hidden else h, w2)
            torch.testing.assert_close(got[t, i], w2.dequantize(F64) @ h, rtol=1e-9, atol=1e-9)


def test_expanded_weights_give_the_same() -> None:
    weights = stacks(mxfp4_weight)
    y, (ids, route) = torch.randn(4, 128), routes(4, 5, 3)
    expanded = [w.expand(torch.float32) for w in weights]
    for rule in ("none", "fp8_32"):
        options = {"limit": 10.0, "rule": rule}
        one = experts(y, ids, route, *weights, **options)  # type: ignore[arg-type]
        assert torch.equal(one, experts(y, ids, route, *expanded, **options))  # type: ignore[arg-type]


def test_nvfp4_without_an_input_scale_is_refused() -> None:
    y, (ids, route) = torch.randn(4, 128), routes(4, 5, 3)
    with pytest.raises(ValueError, match="the weight has no input_scale"):
        experts(y, ids, route, *stacks(nvfp4_weight), limit=10.0, rule="nvfp4")


def test_combined_in_float32_and_rounded_once() -> None:
    routed, shared = torch.randn(5, 6, 16).bfloat16(), torch.randn(5, 16).bfloat16()
    got = moe_combine(routed, shared)
    assert got.dtype == torch.bfloat16
    for t in range(5):
        exact = sum((routed[t, i].double() for i in range(6)), shared[t].double())
        torch.testing.assert_close(got[t].double(), exact, rtol=2**-8, atol=1e-6)
