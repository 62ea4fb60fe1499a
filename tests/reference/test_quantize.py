"""Number codes and quantisers against the rules written out value by value in plain Python and ml_dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from dsv4.runtime.pool import KV_BLOCK
from dsv4.runtime.reference import codes
from dsv4.runtime.reference.pages import fake_quantize
from dsv4.runtime.reference.quantize import (
    fake_quantize_fp8,
    fp8_weight,
    mxfp4_weight,
    nvfp4_weight,
    quantize_fp8,
    quantize_mxfp4,
    quantize_nvfp4,
)
from dsv4.runtime.weight import Format, Weight

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e4m3(value: float) -> float:
    return float(np.array(value, dtype=np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def e2m1(value: float) -> float:
    """The nearest magnitude, of two equally near ones that with the even code."""
    best = min(range(8), key=lambda code: (abs(abs(value) - E2M1[code]), code % 2))
    return math.copysign(E2M1[best], value)


def power_of_two_ceil(value: float) -> float:
    return 2.0 ** math.ceil(math.log2(value))


def fp8_by_hand(row: list[float], block: int, floor: float = 1e-4) -> list[float]:
    out: list[float] = []
    for first in range(0, len(row), block):
        part = row[first : first + block]
        scale = power_of_two_ceil(max(max(map(abs, part)), floor) / 448)
        out += [e4m3(min(max(value / scale, -448), 448)) * scale for value in part]
    return out


def test_e2m1_codes() -> None:
    every = torch.arange(16, dtype=torch.uint8)
    values = codes.decode_e2m1(every)
    assert values.tolist() == E2M1 + [-value for value in E2M1]
    assert torch.equal(codes.encode_e2m1(values), every)
    assert torch.equal(codes.encode_e2m1(values.double()), every)


def test_e2m1_ties_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert codes.decode_e2m1(codes.encode_e2m1(ties)).tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert codes.decode_e2m1(codes.encode_e2m1(-ties)).tolist() == [0, -1, -1, -2, -2, -4, -4]
    assert codes.decode_e2m1(codes.encode_e2m1(torch.tensor([100.0, -100.0]))).tolist() == [6, -6]
    assert math.copysign(1, codes.decode_e2m1(codes.encode_e2m1(torch.tensor([-0.1]))).item()) == -1


def test_e2m1_rounds_to_the_nearest() -> None:
    values = torch.linspace(-7, 7, 2801)
    expected = [e2m1(max(-6.0, min(6.0, value))) for value in values.tolist()]
    assert codes.decode_e2m1(codes.encode_e2m1(values)).tolist() == expected


def test_e2m1_low_nibble_is_the_even_element() -> None:
    packed = codes.pack_e2m1(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]
    assert codes.unpack_e2m1(packed).tolist() == [[0.5, 1.0, -6.0, 0.0]]


def test_power_of_two_ceil_at_and_beside_powers() -> None:
    powers = 2.0 ** torch.arange(-120, 121, dtype=torch.float32)
    above, below = (torch.nextafter(powers, torch.tensor(limit)) for limit in (torch.inf, 0.0))
    assert torch.equal(codes.power_of_two_ceil(powers).float(), powers)
    assert torch.equal(codes.power_of_two_ceil(above).float(), powers * 2)
    assert torch.equal(codes.power_of_two_ceil(below).float(), powers)


@pytest.mark.parametrize(
    ("amax", "scale", "byte"),
    [(0.0, 2**-22, 105), (1e-4, 2**-22, 105), (1.0, 2**-8, 119), (3.5, 2**-7, 120), (3.50035, 2**-6, 121)],
)
def test_scales_of_the_kv_blocks(amax: float, scale: float, byte: int) -> None:
    block = torch.zeros(1, KV_BLOCK)
    block[0, 17] = -amax
    got = quantize_fp8(block, KV_BLOCK)
    assert got.scale.float().item() == scale and got.scale.view(torch.uint8).item() == byte


def test_example_block_of_the_kv() -> None:
    block = torch.zeros(KV_BLOCK)
    block[:8] = torch.tensor([0.013, -1.7, 3.3, 0.5, -0.0021, 1.74609375, 2, 0])
    expected = [0.01269531, -1.75, 3.25, 0.5, -0.00219727, 1.75, 2, 0]
    got = fake_quantize_fp8(block[None], KV_BLOCK)[0]
    torch.testing.assert_close(got[:8], torch.tensor(expected), rtol=0, atol=5e-9)
    assert not got[8:].any()


def test_fq64_leaves_the_rotary_dimensions() -> None:
    values = torch.randn(3, 512).bfloat16()
    got = fake_quantize(values, "fq64")
    assert torch.equal(got[:, 448:], values[:, 448:]) and not torch.equal(got[:, :448], values[:, :448])
    for row, out in zip(values[:, :448].float().tolist(), got[:, :448].float().tolist(), strict=True):
        assert out == fp8_by_hand(row, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("columns", "block"), [(256, 128), (96, 32), (200, 128)])
def test_fp8_activations(dtype: torch.dtype, columns: int, block: int) -> None:
    torch.manual_seed(columns)
    x = (torch.randn(5, columns) * torch.tensor([1e-6, 1e-3, 1.0, 30.0, 1e4])[:, None]).to(dtype)
    x[0] = 0
    got = quantize_fp8(x, block)
    assert got.codes.shape == x.shape and got.scale.shape == (5, -(-columns // block)) and got.width == columns
    for row, out in zip(x.tolist(), got.dequantize(torch.float64).tolist(), strict=True):
        assert out == fp8_by_hand(row, block)


def test_fp8_floor() -> None:
    x = torch.full((1, 128), 1e-7)
    assert quantize_fp8(x).scale.float().item() == 2**-22
    assert quantize_fp8(x, floor=1e-10).scale.float().item() == power_of_two_ceil(1e-7 / 448)


def test_mxfp4() -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 128) * torch.tensor([1e-30, 1e-3, 1.0, 300.0])[:, None]
    x[2, :32] = 0
    got = quantize_mxfp4(x)
    assert got.codes.shape == (4, 64) and got.codes.dtype == torch.uint8 and got.scale.shape == (4, 4)
    assert got.scale[2, 0].float() == 2.0**-126
    for row, out in zip(x.tolist(), got.dequantize(torch.float64).tolist(), strict=True):
        for first in range(0, 128, 32):
            part = row[first : first + 32]
            scale = power_of_two_ceil(max(max(map(abs, part)), 6 * 2.0**-126) / 6)
            assert out[first : first + 32] == [e2m1(value / scale) * scale for value in part]


def test_nvfp4() -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 64).double()
    x[1, 16:32] = 0
    outer = torch.tensor(x.abs().max().item() / (6 * 448), dtype=torch.float32)
    got = quantize_nvfp4(x, outer)
    assert got.codes.shape == (3, 32) and got.scale.dtype == torch.float8_e4m3fn and got.scale.shape == (3, 4)
    for row, out in zip(x.tolist(), got.dequantize(torch.float64).tolist(), strict=True):
        for first in range(0, 64, 16):
            part = row[first : first + 16]
            step = e4m3(max(map(abs, part)) / 6 / outer.item()) * outer.item()
            expected = [e2m1(max(-6.0, min(6.0, value / step))) * step if step else 0.0 for value in part]
            assert out[first : first + 16] == pytest.approx(expected, rel=1e-12)


def test_weight_formats_dequantize_element_by_element() -> None:
    torch.manual_seed(5)
    values = torch.randn(200, 192)
    fp8 = fp8_weight(values)
    assert fp8.shape == (200, 192) and fp8.scale is not None and fp8.scale.shape == (2, 2)
    wide = fp8.dequantize(torch.float64)
    for row, column in ((0, 0), (127, 127), (128, 0), (0, 128), (199, 191), (131, 5)):
        scale = fp8.scale[row // 128, column // 128].double()
        assert wide[row, column] == fp8.codes[row, column].double() * scale
    tile = values[:128, :128]
    scale = power_of_two_ceil(tile.abs().max().item() / 448)
    assert fp8.scale[0, 0].float() == scale
    assert wide[3, 7].item() == e4m3(values[3, 7].item() / scale) * scale

    mx = mxfp4_weight(values)
    assert mx.shape == (200, 192) and mx.scale is not None and mx.scale.shape == (200, 6)
    byte = int(mx.codes[11, 20])
    expected = [E2M1[code & 7] * (-1 if code & 8 else 1) for code in (byte & 15, byte >> 4)]
    assert mx.dequantize(torch.float64)[11, 40:42].tolist() == [v * mx.scale[11, 1].double().item() for v in expected]

    nv = nvfp4_weight(values)
    assert nv.scale is not None and nv.scale_2 is not None and nv.scale.shape == (200, 12)
    byte = int(nv.codes[11, 20])
    step = nv.scale[11, 2].double().item() * nv.scale_2.double().item()
    expected = [E2M1[code & 7] * (-1 if code & 8 else 1) * step for code in (byte & 15, byte >> 4)]
    assert nv.dequantize(torch.float64)[11, 40:42].tolist() == pytest.approx(expected, rel=1e-15)
    for weight, error in ((fp8, 0.04), (mx, 0.26), (nv, 0.18)):
        assert (weight.dequantize() - values).norm() < error * values.norm()


def test_stacks_of_experts() -> None:
    torch.manual_seed(6)
    values = torch.randn(3, 64, 32)
    for make in (fp8_weight, mxfp4_weight, nvfp4_weight, Weight.plain):
        stack = make(values)
        assert stack.shape == (3, 64, 32)
        for expert in range(3):
            assert torch.equal(stack[expert].dequantize(), make(values[expert]).dequantize())
        chosen = stack[torch.tensor([2, 0, 2])]
        assert torch.equal(chosen.dequantize(), stack.dequantize()[[2, 0, 2]])
        expanded = stack.expand(torch.float32)
        assert expanded.format is stack.format and expanded.shape == stack.shape
        assert torch.equal(expanded[1].dequantize(), stack[1].dequantize())


@pytest.mark.parametrize(
    ("format", "codes_tensor", "scale", "message"),
    [
        (Format.PLAIN, torch.zeros(4, dtype=torch.float32), None, r"shape \[4\]; valid: \[out, in\]"),
        (Format.PLAIN, torch.zeros(4, 4, dtype=torch.int32), None, "int32; valid: bfloat16, float32 or float64"),
        (Format.FP8_BLOCK, torch.zeros(4, 4), None, "float32; valid: torch.float8_e4m3fn"),
        (Format.MXFP4, torch.zeros(4, 16, dtype=torch.uint8), None, "no scale; valid: torch.float8_e8m0fnu"),
        (
            Format.MXFP4,
            torch.zeros(4, 32, dtype=torch.uint8),
            torch.zeros(4, 1, dtype=torch.uint8).view(torch.float8_e8m0fnu),
            r"a scale of shape \[4, 1\]; valid: \[4, 2\]",
        ),
        (
            Format.NVFP4,
            torch.zeros(4, 16, dtype=torch.uint8),
            torch.zeros(4, 2, dtype=torch.uint8).view(torch.float8_e4m3fn),
            "scale_2: found none; valid: float32",
        ),
    ],
)
def test_wrong_weights_are_refused(
    format: Format, codes_tensor: torch.Tensor, scale: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Weight(format, codes_tensor, scale)
