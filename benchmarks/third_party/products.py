"""quack's matrix products: dense for both chips, block-scaled for sm_100a. No shape is square or fills its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.third_party.check import Check, close
from benchmarks.third_party.rows import BF16, F16, F32, Case, numbers, quack
from benchmarks.third_party.stand_in import addressed

ACCUMULATED = 2.0**-20
"""What a float32 accumulation may lose, relative to the sum of the products' magnitudes."""


@dataclass(frozen=True)
class Dense:
    """D = α·A·B (+ β·C + bias), batches × m × n × k, tile and cluster of quack's kernel."""

    size: tuple[int, int, int, int]
    dtype: torch.dtype
    out: torch.dtype
    tile: tuple[int, int]
    cluster: tuple[int, int]
    transposed: bool = False  # A m-major, B n-major, D m-major
    with_c: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self) -> list[Check]:
        batches, m, n, k = self.size
        a, b = numbers(batches, m, k, dtype=self.dtype), numbers(batches, n, k, dtype=self.dtype, seed=1)
        d = torch.empty(batches, m, n, dtype=self.out)
        if self.transposed:
            a, b = (each.mT.contiguous().mT for each in (a, b))
            d = torch.empty(batches, n, m, dtype=self.out).mT
        options: dict[str, Any] = dict(self.options)
        c = bias = None
        want = a.double() @ b.double().mT
        size = a.double().abs() @ b.double().abs().mT
        if self.with_c:
            c, bias = numbers(batches, m, n, dtype=self.out, seed=2), numbers(batches, n, seed=3)
            want = 0.5 * want + 2.0 * c.double() + bias.double()[:, None]
            options |= {"alpha": 0.5, "beta": 2.0, "rowvec_bias": bias}
        semaphore = addressed(torch.zeros(1, dtype=torch.int32)) if options.get("is_dynamic_persistent") else None
        quack("gemm").gemm(a, b, d, c, semaphore, *self.tile, *self.cluster, **options)
        return [close("D", d, want, relative=2.0**-20, absolute=ACCUMULATED * float(size.max()))]


PINGPONG, DYNAMIC = (("pingpong", True),), (("is_dynamic_persistent", True),)
DENSE: dict[str, dict[str, Dense]] = {
    "sm_90a": {
        "gemm bf16 with C and bias": Dense((2, 264, 392, 200), BF16, BF16, (128, 192), (2, 1), with_c=True),
        "gemm f16 transposed, ping-pong": Dense(
            (1, 264, 392, 136), F16, F16, (128, 128), (1, 2), True, False, PINGPONG
        ),
        "gemm bf16 to f32, dynamic": Dense((1, 264, 392, 136), BF16, F32, (256, 128), (1, 1), options=DYNAMIC),
    },
    "sm_100a": {
        "gemm bf16 with C and bias": Dense((2, 264, 392, 200), BF16, BF16, (128, 192), (2, 1), with_c=True),
        "gemm f16 transposed, 2 CTAs": Dense((1, 520, 392, 136), F16, F16, (256, 256), (2, 1), True),
        "gemm bf16 to f32, dynamic": Dense((1, 264, 392, 136), BF16, F32, (128, 128), (1, 2), options=DYNAMIC),
    },
}


def small_floats(exponent_bits: int, mantissa_bits: int) -> torch.Tensor:
    """The values of all codes of a format without infinities, in the order of the codes."""
    bits = exponent_bits + mantissa_bits
    code = torch.arange(2 ** (bits + 1))
    sign = 1.0 - 2.0 * (code >> bits)
    exponent, mantissa = code >> mantissa_bits & 2**exponent_bits - 1, code & 2**mantissa_bits - 1
    fraction = mantissa / 2**mantissa_bits + (exponent > 0)
    return sign * fraction * torch.exp2(exponent.clamp(min=1) - 2.0 ** (exponent_bits - 1) + 1)


VALUES = {
    "nvfp4": small_floats(2, 1),
    "mxfp4": small_floats(2, 1),
    "mxfp6_e2m3_packed": small_floats(2, 3),
    "mxfp6_e3m2_packed": small_floats(3, 2),
}


@dataclass(frozen=True)
class BlockScaled:
    """D = A·B of random codes with random scale factors in quack's blocked layout, m × n × k."""

    size: tuple[int, int, int]
    formats: tuple[str, str]

    def __call__(self) -> list[Check]:
        m, n, k = self.size
        (a, a_exact), (b, b_exact) = (
            scaled_operand(rows, k, name, seed) for rows, name, seed in zip((m, n), self.formats, (1, 2), strict=True)
        )
        d = quack("gemm_interface").gemm(a, b.mT, out_dtype=BF16, tuned=False)
        size = a_exact.abs() @ b_exact.abs().T
        return [close("D", d, a_exact @ b_exact.T, relative=2.0**-20, absolute=ACCUMULATED * float(size.max()))]


def scaled_operand(rows: int, k: int, format_name: str, seed: int) -> tuple[Any, torch.Tensor]:
    """An operand of random codes [rows, k] for quack, and its value in float64.

    The scale factor of row r and block c lies at [r / 128, c / 4, r % 32, r % 128 / 32, c % 4].
    """
    blockscaled = quack("blockscaled.operand")
    kind = blockscaled._coerce_format(format_name)
    generator = torch.Generator().manual_seed(seed)
    blocks = k // kind.sf_vec_size
    padded = (-(-rows // 128) * 128, -(-blocks // 4) * 4)
    if kind.scale_dtype == torch.float8_e4m3fn:
        scale = (torch.rand(padded, generator=generator) * 4 + 0.1).to(kind.scale_dtype)
    else:
        scale = torch.randint(122, 131, padded, generator=generator, dtype=torch.uint8).view(kind.scale_dtype)
    blocked = scale.view(torch.uint8).reshape(padded[0] // 128, 4, 32, padded[1] // 4, 4).permute(0, 3, 2, 1, 4)
    if format_name in VALUES:
        codes = torch.randint(len(VALUES[format_name]), (rows, k), generator=generator)
        values = VALUES[format_name][codes]
        data = packed(codes, kind.elem_bits).view(kind.qdata_dtype)
    else:
        data = numbers(rows, k, seed=seed).to(kind.qdata_dtype)
        values = data.float()
    factors = scale[:rows, :blocks].float().repeat_interleave(kind.sf_vec_size, 1)
    made = blockscaled.BlockScaledOperand(data, blocked.contiguous().view(kind.scale_dtype), kind, orig_dtype=BF16)
    return made, values.double() * factors.double()


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of 4 or 6 bits as a stream of bytes, the first code in the lowest bits."""
    rows, k = codes.shape
    groups = codes.reshape(rows, k // 4, 4) << torch.arange(4) * bits
    stream = groups.sum(-1, keepdim=True) >> torch.arange(bits // 2) * 8 & 255
    return stream.to(torch.uint8).reshape(rows, k * bits // 8)


BLOCK_SCALED = {
    "gemm nvfp4": BlockScaled((264, 392, 512), ("nvfp4", "nvfp4")),
    "gemm mxfp8": BlockScaled((136, 264, 384), ("mxfp8_e4m3", "mxfp8_e5m2")),
    "gemm mxfp4, 2 CTAs": BlockScaled((520, 264, 256), ("mxfp4", "mxfp4")),
    "gemm mxfp6": BlockScaled((264, 136, 384), ("mxfp6_e2m3_packed", "mxfp6_e3m2_packed")),
    "gemm mxfp4 and mxfp8": BlockScaled((136, 264, 512), ("mxfp4", "mxfp8_e4m3")),
}


def cases(arch: str) -> dict[str, Case]:
    """The products of one chip by name."""
    found: dict[str, Case] = dict(DENSE[arch])
    if arch == "sm_100a":
        found |= BLOCK_SCALED
    return found
