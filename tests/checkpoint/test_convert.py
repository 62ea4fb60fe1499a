"""MXFP4 weights in the formats of other kernels: the same numbers, or a refusal (dsv4-reference §9.3, §9.4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.runtime.checkpoint.convert import mxfp4_to_fp8, mxfp4_to_nvfp4
from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.weight import Format, Weight

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def mxfp4(exponents: torch.Tensor, *, seed: int = 0, codes: torch.Tensor | None = None) -> Weight:
    """Random codes under the scales 2^exponents [.., out, in/32]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*exponents.shape[:-1], exponents.shape[-1] * 16)
    if codes is None:
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Weight(Format.MXFP4, codes, (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu))


def by_hand(weight: Weight) -> torch.Tensor:
    """The weight's numbers in float64, element by element, from the table of dsv4-reference §9.3."""
    assert weight.scale is not None
    codes, scale = weight.codes.tolist(), weight.scale.view(torch.uint8).tolist()
    rows = []
    for row, scales in zip(codes, scale, strict=True):
        nibbles = [nibble for byte in row for nibble in (byte & 15, byte >> 4)]
        rows.append(
            [
                (-1.0 if nibble & 8 else 1.0) * VALUES[nibble & 7] * 2.0 ** (scales[column // 32] - 127)
                for column, nibble in enumerate(nibbles)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


def random_exponents(*shape: int, low: int, high: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def test_the_oracle_and_the_container_agree() -> None:
    weight = mxfp4(random_exponents(5, 3, low=-9, high=4))
    assert torch.equal(by_hand(weight), weight.dequantize(torch.float64))


@pytest.mark.parametrize(("low", "high"), [(-6, 0), (-16, -10), (100, 106), (-127, -121), (-120, -106)])
def test_fp8_holds_the_same_numbers(low: int, high: int) -> None:
    weight = mxfp4(random_exponents(256, 8, low=low, high=high))
    converted = mxfp4_to_fp8(weight)
    assert (converted.format, converted.shape) == (Format.FP8_BLOCK, (256, 256))
    assert torch.equal(by_hand(weight), converted.dequantize(torch.float64))


def test_the_fp8_scale_is_the_blocks_largest_over_64() -> None:
    exponents = random_exponents(256, 8, low=-6, high=0)
    scale = mxfp4_to_fp8(mxfp4(exponents)).scale
    assert scale is not None
    for row in range(2):
        for column in range(2):
            largest = exponents[128 * row : 128 * row + 128, 4 * column : 4 * column + 4].max()
            assert int(scale.view(torch.uint8)[row, column]) - 127 == int(largest) - 6


def test_the_largest_code_under_the_largest_scale_is_384() -> None:
    weight = mxfp4(torch.zeros(128, 4, dtype=torch.int64), codes=torch.full((128, 64), 0x7F, dtype=torch.uint8))
    converted = mxfp4_to_fp8(weight)
    assert converted.codes.to(torch.float32)[0, :2].tolist() == [-384.0, 384.0]


def test_fp8_refuses_scales_that_lie_too_far_apart() -> None:
    """½ · 2^(6 − 14) is E4M3's least number, 2^-9."""
    exponents = torch.zeros(128, 4, dtype=torch.int64)
    codes = torch.full((128, 64), 0x11, dtype=torch.uint8)
    exponents[5, 1] = -14
    assert torch.equal(by_hand(mxfp4(exponents, codes=codes)), mxfp4_to_fp8(mxfp4(exponents, codes=codes)).dequantize())
    exponents[5, 1] = -15
    with pytest.raises(CheckpointError, match=r"scale: found 2\^15 between the scales of one 128 × 128 block"):
        mxfp4_to_fp8(mxfp4(exponents, codes=codes))


def test_fp8_keeps_very_small_blocks_exact() -> None:
    weight = mxfp4(torch.full((128, 4), -127))
    converted = mxfp4_to_fp8(weight)
    assert converted.scale is not None and int(converted.scale.view(torch.uint8).max()) == 0
    assert torch.equal(by_hand(weight), converted.dequantize(torch.float64))


def test_fp8_needs_whole_blocks() -> None:
    with pytest.raises(CheckpointError, match=r"found \[64, 128\]; valid: rows and columns a multiple of 128"):
        mxfp4_to_fp8(mxfp4(torch.zeros(64, 4, dtype=torch.int64)))


@pytest.mark.parametrize(("low", "high"), [(-17, 0), (-30, -13), (90, 100), (-127, -110)])
def test_nvfp4_holds_the_same_numbers_under_the_same_codes(low: int, high: int) -> None:
    weight = mxfp4(random_exponents(48, 6, low=low, high=high))
    converted = mxfp4_to_nvfp4(weight)
    assert (converted.format, converted.shape) == (Format.NVFP4, (48, 192))
    assert torch.equal(converted.codes, weight.codes)
    assert torch.equal(by_hand(weight), converted.dequantize(torch.float64))


def test_the_nvfp4_scales_follow_the_rule() -> None:
    """scale_2 = 2^(kmax − 8), scale = 2^(k − m), both halves of 32 the same."""
    exponents = torch.tensor([[-3, -20], [-10, -11]])
    converted = mxfp4_to_nvfp4(mxfp4(exponents))
    assert converted.scale is not None and converted.scale_2 is not None
    assert converted.scale_2.item() == 2.0**-11
    expected = [[2.0**8, 2.0**8, 2.0**-9, 2.0**-9], [2.0, 2.0, 1.0, 1.0]]
    assert converted.scale.to(torch.float32).tolist() == expected


def test_nvfp4_refuses_a_scale_more_than_two_to_the_17_below_the_largest() -> None:
    with pytest.raises(CheckpointError, match=r"found 2\^18 between the scales of a matrix; valid: at most 2\^17"):
        mxfp4_to_nvfp4(mxfp4(torch.tensor([[0, -18]])))


def test_nvfp4_takes_zeros_under_the_quantisers_least_scale() -> None:
    """Blocks of zeros, of either sign, have the scale 2^-126 in the official files."""
    codes = torch.full((1, 32), 0x21, dtype=torch.uint8)
    codes[0, 16:] = 0x80
    weight = mxfp4(torch.tensor([[-5, -126]]), codes=codes)
    assert torch.equal(by_hand(weight), mxfp4_to_nvfp4(weight).dequantize(torch.float64))


def test_stacked_experts_are_converted_each_by_itself() -> None:
    exponents = random_exponents(3, 128, 4, low=-5, high=0) + torch.tensor([0, 40, -40])[:, None, None]
    weight = mxfp4(exponents)
    for convert in (mxfp4_to_fp8, mxfp4_to_nvfp4):
        together = convert(weight)
        for expert in range(3):
            alone = convert(weight[expert])
            assert torch.equal(together[expert].dequantize(), alone.dequantize())
            assert torch.equal(together[expert].dequantize(torch.float64), by_hand(weight[expert]))


@pytest.mark.parametrize("convert", [mxfp4_to_fp8, mxfp4_to_nvfp4])
def test_nan_scales_and_other_formats_are_refused(convert: Callable[[Weight], Weight]) -> None:
    exponents = torch.zeros(128, 4, dtype=torch.int64)
    exponents[3, 2] = 128
    with pytest.raises(CheckpointError, match="scale: found NaN"):
        convert(mxfp4(exponents))
    with pytest.raises(CheckpointError, match="found plain; valid: mxfp4"):
        convert(Weight.plain(torch.zeros(128, 128)))
