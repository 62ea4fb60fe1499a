"""Linears in every weight format, the inverse rotation and the grouped output projection, against dsv4-reference."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.reference.grouped_output import grouped_output
from dsv4.runtime.reference.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.reference.linear import linear
from dsv4.runtime.reference.lm_head import lm_head
from dsv4.runtime.reference.quantize import fp8_weight, mxfp4_weight, nvfp4_weight, quantize_fp8, quantize_nvfp4
from dsv4.runtime.reference.rope import rope_frequencies, rope_table, rotate
from dsv4.runtime.weight import Quantized, Weight

F64 = torch.float64


def test_plain_linear() -> None:
    x, w = torch.randn(2, 3, 8, dtype=F64), torch.randn(5, 8, dtype=F64)
    got = linear(x, Weight.plain(w), dtype=F64)
    for i in range(2):
        for j in range(3):
            for o in range(5):
                assert got[i, j, o].item() == pytest.approx(sum((x[i, j] * w[o]).tolist()), rel=1e-12)
    assert linear(x[:0], Weight.plain(w), dtype=F64).shape == (0, 3, 5)
    assert linear(x.bfloat16(), Weight.plain(w)).dtype == torch.bfloat16


def test_fp8_linear_block_by_block() -> None:
    """acc += (codes · codesᵀ) · scale of x · scale of W for each 128 columns (dsv4-reference §4.2)."""
    torch.manual_seed(0)
    x, weight = quantize_fp8(torch.randn(3, 256) * 4), fp8_weight(torch.randn(130, 256))
    assert weight.scale is not None
    expected = torch.zeros(3, 130, dtype=F64)
    for k in range(2):
        columns = slice(128 * k, 128 * k + 128)
        products = x.codes[:, columns].double() @ weight.codes[:, columns].double().T
        for o in range(130):
            expected[:, o] += products[:, o] * x.scale[:, k].double() * weight.scale[o // 128, k].double()
    torch.testing.assert_close(linear(x, weight, dtype=F64, out_dtype=F64), expected, rtol=1e-14, atol=1e-12)
    got = linear(x, weight)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(linear(x, weight.expand(torch.bfloat16)), got)  # e4m3 · 2ⁿ is exact in bf16


def test_fp4_linears() -> None:
    torch.manual_seed(1)
    x, values = torch.randn(3, 64), torch.randn(5, 64)
    for weight in (mxfp4_weight(values), nvfp4_weight(values)):
        got = linear(x, weight, dtype=F64, out_dtype=F64)
        torch.testing.assert_close(got, x.double() @ weight.dequantize(F64).T, rtol=1e-13, atol=1e-13)
    quantized = quantize_nvfp4(x, torch.tensor(0.002))
    got = linear(quantized, nvfp4_weight(values), dtype=F64, out_dtype=F64)
    torch.testing.assert_close(got, quantized.dequantize(F64) @ nvfp4_weight(values).dequantize(F64).T)


def test_inverse_rotation_at_the_query_and_groups_by_heads() -> None:
    torch.manual_seed(2)
    out = torch.randn(3, 6, 512, dtype=F64)
    table = rope_table(torch.tensor([0, 9, 70000]), rope_frequencies(1e4, 64), dtype=F64)
    got = inverse_rope_quant(out, table, groups=2, dtype=F64)
    assert isinstance(got, torch.Tensor) and got.shape == (3, 2, 3 * 512)
    back = rotate(got.view(3, 6, 512), table, dtype=F64)
    torch.testing.assert_close(back, out, rtol=0, atol=1e-12)
    assert torch.equal(got[:, 1, 512:960], out[:, 4, :448])  # group 1 has heads 3, 4, 5, head-major


def test_quantised_output() -> None:
    torch.manual_seed(3)
    out = torch.randn(3, 4, 512).mul(1e-6).bfloat16()
    table = rope_table(torch.arange(3), rope_frequencies(1e4, 64))
    got = inverse_rope_quant(out, table, groups=2, quantize=True)
    assert isinstance(got, Quantized) and got.codes.shape == (3, 2, 1024) and got.scale.shape == (3, 2, 8)
    exact = inverse_rope_quant(out, table, groups=2, out_dtype=torch.float32)
    assert isinstance(exact, torch.Tensor)
    expected = quantize_fp8(exact, 128, floor=1e-10)
    assert torch.equal(got.dequantize(), expected.dequantize())
    assert got.scale.float().max() < 2**-22  # the floor of other linears would be above all of these


@pytest.mark.parametrize("quantized", [False, True])
def test_grouped_output(quantized: bool) -> None:
    torch.manual_seed(4)
    groups, rank, width = 3, 8, 256
    out = torch.randn(2, groups, width, dtype=F64)
    weight = fp8_weight(torch.randn(groups * rank, width)) if quantized else Weight.plain(torch.randn(24, width))
    x = quantize_fp8(out, 128) if quantized else out
    dense = x.dequantize(F64) if isinstance(x, Quantized) else x
    got = grouped_output(x, weight, dtype=F64, out_dtype=F64)
    matrix = weight.dequantize(F64)
    for t in range(2):
        for g in range(groups):
            for r in range(rank):
                expected = float(dense[t, g] @ matrix[g * rank + r])
                assert got[t, g * rank + r].item() == pytest.approx(expected, rel=1e-12)
    assert grouped_output(out[:0], weight, dtype=F64).shape == (0, groups * rank)


def test_logits_are_not_rounded() -> None:
    h, weight = torch.randn(2, 16).bfloat16(), torch.randn(7, 16).bfloat16()
    got = lm_head(h, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), h.double() @ weight.double().T, rtol=1e-5, atol=1e-6)
    assert not torch.equal(got, got.bfloat16().float())
