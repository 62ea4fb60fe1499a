"""The device functions for E8M0, E4M3 and E2M1 codes, byte for byte against the reference, on either chip's program."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv4.emulator import launcher
from dsv4.emulator.arguments import as_dtype, output, reads
from dsv4.emulator.objects import from_compiled
from dsv4.runtime.reference import codes
from dsv4.runtime.reference.quantize import FP8_FLOOR, MXFP4_FLOOR
from tests.ops.code_kernels import compile_kernels

ARCHS = ("sm_90a", "sm_100a")


@pytest.fixture(scope="module", params=ARCHS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any, Any]:
    encode, decode, scale = compile_kernels(request.param, str(tmp_path_factory.mktemp(request.param)))
    return request.param, from_compiled(encode), from_compiled(decode), from_compiled(scale)


def call(kernel: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    def named(tensor: torch.Tensor) -> Any:
        return as_dtype(tensor, "u32") if tensor.dtype == torch.int32 else tensor

    report = launcher.run(kernel, *(reads(named(x)) for x in inputs), *(output(named(x)) for x in outputs))
    assert not report.findings, report.findings


def every_bf16() -> torch.Tensor:
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def values_to_encode() -> torch.Tensor:
    """Every bf16; around every boundary between codes the float32 next to it; magnitudes of all kinds: [n, 8]."""
    e4m3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float64)
    e2m1 = codes.decode_e2m1(torch.arange(8, dtype=torch.uint8), dtype=torch.float64)
    exact = torch.cat([e4m3, e2m1, (e4m3[1:] + e4m3[:-1]) / 2, (e2m1[1:] + e2m1[:-1]) / 2, torch.tensor([464.0])])
    bits = exact.to(torch.float32).view(torch.int32)
    near = torch.cat([bits + step for step in (-2, -1, 0, 1, 2)]).clamp(min=0).view(torch.float32)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(40000, generator=generator) * torch.logspace(-5, 3, 40000)
    several = torch.cat([every_bf16().to(torch.float32), near, -near, drawn, drawn.clamp(-6, 6)])
    return torch.nn.functional.pad(several, (0, -len(several) % 8)).view(-1, 8)


def test_codes_are_those_of_the_reference(kernels: tuple[str, Any, Any, Any]) -> None:
    x = values_to_encode()
    fp8, fp4 = torch.zeros(len(x), 2, dtype=torch.int32), torch.zeros(len(x), 1, dtype=torch.int32)
    call(kernels[1], [x], [fp8, fp4])
    got8 = fp8.view(torch.uint8)
    expected8 = x.clamp(-codes.E4M3_MAX, codes.E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(got8, torch.where(x.isnan(), 0x7F, expected8))
    got4 = fp4.view(torch.uint8)
    expected4 = codes.encode_e2m1(x)
    got4 = torch.stack((got4 & 0xF, got4 >> 4), dim=-1).flatten(-2)
    known = ~x.isnan()
    assert torch.equal(got4[known], expected4[known])
    assert bool((got4[~known] & 7 == 7).all())


def test_decoding_is_exact(kernels: tuple[str, Any, Any, Any]) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    fp8, fp4 = every.repeat(2).view(-1, 8), every.view(-1, 4)
    from_fp8, from_fp4 = torch.zeros(64, 8), torch.zeros(64, 8)
    call(kernels[2], [fp8.view(torch.int32), fp4.view(torch.int32)], [from_fp8, from_fp4])
    exact8 = fp8.view(torch.float8_e4m3fn).to(torch.float32)
    assert torch.equal(from_fp8.isnan(), exact8.isnan())
    assert torch.equal(bits(from_fp8.nan_to_num(7.0)), bits(exact8.nan_to_num(7.0)))
    assert torch.equal(bits(from_fp4), bits(codes.unpack_e2m1(fp4)))


def test_scales_are_those_of_the_reference(kernels: tuple[str, Any, Any, Any]) -> None:
    """Each magnitude of bf16 at each place among smaller ones; NaN and infinity win; two lanes share the larger one."""
    largest = every_bf16()
    x = torch.where(torch.eye(8, dtype=torch.bool).repeat(8192, 1), largest[:, None], largest[:, None] * 0.25)
    x[::3, 5] = 0.0
    x[1::1024, 2] = float("nan")
    found = [torch.zeros(len(x), 3, dtype=torch.int32), torch.zeros(len(x), 3), torch.zeros(len(x), 3)]
    call(kernels[3], [x], found)
    amax = x.to(torch.float32).abs().amax(-1)
    paired = amax.view(-1, 2).amax(-1).repeat_interleave(2)
    expected = torch.stack(
        [
            codes.power_of_two_ceil(each.clamp(min=floor) * (1 / top)).view(torch.uint8)
            for each, floor, top in (
                (amax, FP8_FLOOR, codes.E4M3_MAX),
                (amax, MXFP4_FLOOR, codes.E2M1_MAX),
                (paired, FP8_FLOOR, codes.E4M3_MAX),
            )
        ],
        dim=-1,
    )  # fmt: skip
    assert torch.equal(found[0], expected.to(torch.int32))
    assert {0, 1, 105, 255} <= set(expected.flatten().tolist())
    scale = expected.view(torch.float8_e8m0fnu).to(torch.float32)
    assert torch.equal(bits(found[2].nan_to_num(7.0)), bits(scale.nan_to_num(7.0)))
    assert torch.equal(bits(found[1].nan_to_num(7.0)), bits((1 / scale).nan_to_num(7.0)))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32)
