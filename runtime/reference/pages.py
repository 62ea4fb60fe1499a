"""Rows of a pool written and read: plain ones, and the packed bytes of FP8 and FP4 pages (dsv4-reference §4.4, §6.5).

This is the definition of the bytes; the caches and the kernels' tests use it.
"""

from __future__ import annotations

from typing import Literal

import torch

from dsv4.runtime.pool import KV_BLOCK, KV_CODES, KV_WIDTH, ROW_BYTES, Pool, PoolFormat
from dsv4.runtime.reference import codes
from dsv4.runtime.reference.quantize import fake_quantize_fp8, fake_quantize_mxfp4, quantize_fp8, quantize_mxfp4

Fake = Literal["none", "fq64", "fp4"]
"""What a plain pool's values are rounded to first: nothing, FQ64 of the KV (§4.3), MXFP4 of the indexer (§6.3)."""


def write_rows(pool: Pool, rows: torch.Tensor, values: torch.Tensor, *, fake: Fake = "none") -> None:
    """Write ``values`` [N, width] to ``rows`` [N] of ``pool``, quantised as its format says; row −1 is scratch.

    In a plain pool the values are rounded by ``fake`` in their own dtype, then stored in the pool's. No two valid rows
    may be equal.
    """
    index = rows.to(torch.int64)
    if pool.format is PoolFormat.PLAIN:
        pool.data.view(-1, pool.width)[index] = fake_quantize(values, fake).to(pool.data.dtype)
        return
    body, tail = packed_views(pool)
    page, offset = index // pool.page, index % pool.page
    body_bytes, tail_bytes = pack(pool.format, values)
    body[page, offset] = body_bytes
    tail[page, offset] = tail_bytes


def read_rows(pool: Pool, rows: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values [.., width] of ``rows`` [..] in ``dtype``, dequantised; zeros where a row is −1."""
    index = rows.to(torch.int64).clamp(min=0)
    if pool.format is PoolFormat.PLAIN:
        values = pool.data.view(-1, pool.width)[index].to(dtype)
    else:
        body, tail = packed_views(pool)
        page, offset = index // pool.page, index % pool.page
        values = unpack(pool.format, body[page, offset], tail[page, offset], dtype=dtype)
    return values.masked_fill_((rows < 0)[..., None], 0.0)


def fake_quantize(values: torch.Tensor, fake: Fake) -> torch.Tensor:
    """``values`` [.., width] as they come out of a quantised cache, in their own dtype."""
    if fake == "none":
        return values
    if fake == "fp4":
        return fake_quantize_mxfp4(values)
    quantized = fake_quantize_fp8(values[..., :KV_CODES], KV_BLOCK)
    return torch.cat((quantized, values[..., KV_CODES:]), dim=-1)


def packed_views(pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
    """u8 [pages, P, bytes] of the rows' first regions, and of their scales."""
    body, tail = ROW_BYTES[pool.format]
    end = pool.page * body
    first = pool.data[:, :end].unflatten(1, (pool.page, body))
    return first, pool.data[:, end : end + pool.page * tail].unflatten(1, (pool.page, tail))


def pack(format: PoolFormat, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of ``values`` [N, width]: first region and scales, u8 [N, ..] each."""
    if format is PoolFormat.KV_FP8:
        quantized = quantize_fp8(values[..., :KV_CODES], KV_BLOCK)
        rotary = values[..., KV_CODES:].to(torch.bfloat16).contiguous()
        body = torch.cat((quantized.codes.view(torch.uint8), rotary.view(torch.uint8)), dim=-1)
        return body, torch.nn.functional.pad(quantized.scale.view(torch.uint8), (0, 1))
    if format is PoolFormat.INDEX_FP8:
        quantized = quantize_fp8(values, values.shape[-1])
        return quantized.codes.view(torch.uint8), quantized.scale.to(torch.float32).view(torch.uint8)
    quantized = quantize_mxfp4(values)
    return quantized.codes, quantized.scale.view(torch.uint8)


def unpack(
    format: PoolFormat, body: torch.Tensor, tail: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The values [.., width] of the bytes of rows."""
    if format is PoolFormat.KV_FP8:
        scale = tail[..., : KV_CODES // KV_BLOCK].contiguous().view(torch.float8_e8m0fnu).to(dtype)
        code = body[..., :KV_CODES].contiguous().view(torch.float8_e4m3fn).to(dtype)
        rotary = body[..., KV_CODES:].contiguous().view(torch.bfloat16).to(dtype)
        assert rotary.shape[-1] == KV_WIDTH - KV_CODES
        return torch.cat((code * scale.repeat_interleave(KV_BLOCK, dim=-1), rotary), dim=-1)
    if format is PoolFormat.INDEX_FP8:
        return body.view(torch.float8_e4m3fn).to(dtype) * tail.contiguous().view(torch.float32).to(dtype)
    scale = tail.contiguous().view(torch.float8_e8m0fnu).to(dtype)
    return codes.unpack_e2m1(body, dtype=dtype) * scale.repeat_interleave(32, dim=-1)
