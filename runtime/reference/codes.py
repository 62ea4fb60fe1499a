"""The number codes that scales and FP4 values are stored in: E8M0, E2M1, and rounding up to a power of two.

Written in integer tensor arithmetic on any device, without tables, so that nothing waits for a copy from the host.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0
E2M1_MAX = 6.0


def power_of_two_ceil(x: torch.Tensor) -> torch.Tensor:
    """2^⌈log2 x⌉ as E8M0 codes, for float32 x > 0 that is normal (dsv4-reference §4.2: exponent + (mantissa ≠ 0))."""
    bits = x.to(torch.float32).view(torch.int32)
    exponent = ((bits >> 23) & 0xFF) + ((bits & 0x7FFFFF) != 0)
    return exponent.to(torch.uint8).view(torch.float8_e8m0fnu)


def encode_e2m1(x: torch.Tensor) -> torch.Tensor:
    """E2M1 codes (u8, 0 … 15) of x, clamped to ±6 and rounded to the nearest, ties to the even code (§6.3).

    The magnitudes of codes 0 … 7 are 0, ½, 1, 1½, 2, 3, 4, 6; bit 3 is the sign, that of a zero included.
    """
    magnitude = x.abs()
    code = (magnitude > 0.25).to(torch.uint8)
    for place, (boundary, even_above) in enumerate(
        ((0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False)), start=2
    ):
        above = magnitude >= boundary if even_above else magnitude > boundary
        code = torch.where(above, place, code)
    return code | (torch.signbit(x).to(torch.uint8) << 3)


def decode_e2m1(code: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values of E2M1 codes 0 … 15 (u8)."""
    exponent, mantissa = (code >> 1) & 3, (code & 1).to(dtype)
    power = (1 << exponent.clamp(min=1).to(torch.int32)).to(dtype) * 0.5
    magnitude = torch.where(exponent == 0, mantissa * 0.5, (1 + 0.5 * mantissa) * power)
    return torch.where(code >= 8, -magnitude, magnitude)


def pack_e2m1(code: torch.Tensor) -> torch.Tensor:
    """Codes [.., K] as bytes [.., K/2], the even element in the low nibble."""
    return code[..., 0::2] | (code[..., 1::2] << 4)


def unpack_e2m1(packed: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values [.., 2K] of bytes [.., K]."""
    code = torch.stack((packed & 0xF, packed >> 4), dim=-1)
    return decode_e2m1(code, dtype=dtype).flatten(-2)
