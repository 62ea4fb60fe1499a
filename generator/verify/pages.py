"""Judges what a kernel wrote to a pool: the bytes of the rows against float64 values, and all other bytes unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dsv4.generator.verify import judging, quantized
from dsv4.runtime.pool import KV_BLOCK, KV_CODES, KV_WIDTH, Pool, PoolFormat
from dsv4.runtime.reference.pages import packed_views

ROTARY = KV_WIDTH - KV_CODES


@dataclass(frozen=True)
class PageVerdict:
    """``findings`` one line each; ``values`` float64 [N, width] are what the stored rows say, for measures of error."""

    findings: tuple[str, ...]
    values: torch.Tensor


def judge_pages(
    after: Pool,
    before: torch.Tensor,
    rows: torch.Tensor,
    expected: torch.Tensor,
    *,
    name: str = "pool",
    amax_error: float = quantized.AMAX_ERROR,
) -> PageVerdict:
    """Hold the rows of ``after`` to ``expected`` (float64 [T, width]) at ``rows`` [T]; ``before`` is its data before.

    ``amax_error``: the relative error of a float32 amax by which a scale is excused.

    A row < 0 was not to be stored. The rule: at most one step on at most 0.1 % of the codes and bf16 numbers, scales
    equal where the amax decides them, the byte of padding 0 (dsv4-reference §4.4), every other byte as it was.
    """
    stored = rows >= 0
    index, values = rows[stored].to(torch.int64), expected[stored]
    findings = _changed_elsewhere(after, before, index, name)
    if after.format is PoolFormat.PLAIN:
        got = after.data.view(-1, after.width)[index]
        findings += judging.bf16_within(name, got, values, quantized.float32_error(values, rotary=ROTARY))
        return PageVerdict(tuple(findings), got.to(torch.float64))
    body, tail = packed_views(after)
    page, offset = index // after.page, index % after.page
    body, tail = body[page, offset], tail[page, offset]
    if after.format is PoolFormat.KV_FP8:
        blocks = values[:, :KV_CODES].unflatten(-1, (-1, KV_BLOCK))
        codes, scale = body[:, :KV_CODES].unflatten(-1, (-1, KV_BLOCK)), tail[:, :-1]
        rotary = body[:, KV_CODES:].contiguous().view(torch.bfloat16)
        turned = values[:, KV_CODES:]
        error = quantized.float32_error(turned, rotary=ROTARY)
        findings += judging.bf16_within(f"{name}, rotary part", rotary, turned, error)
        if tail[:, -1].any():
            findings.append(f"{name}: the byte of padding after the scales is not 0")
        code = "e4m3"
    else:
        rotary = torch.empty(len(index), 0, dtype=torch.bfloat16, device=body.device)
        if after.format is PoolFormat.INDEX_FP8:
            blocks, codes, code = values[:, None], body[:, None], "e4m3"
            bits = tail.contiguous().view(torch.int32)
            special = (bits == 0x400000) | (bits == 0x7FC00000)  # 2^-127, a block with a NaN; NaN, one with an infinity
            if ((bits & 0x7FFFFF != 0) & ~special).any():
                findings.append(f"{name}: a scale is no power of two")
            scale = (bits >> 23) & 0xFF
        else:
            blocks, code, scale = values.unflatten(-1, (-1, 32)), "e2m1", tail
            codes = torch.stack((body & 0xF, body >> 4), dim=-1).flatten(-2).unflatten(-1, (-1, 32))
    low, high = quantized.scale_range(blocks, code, error=amax_error)
    findings += quantized.scale_findings(name, scale, low, high)
    size = quantized.scale_values(scale)
    findings += quantized.step_findings(name, quantized.code_steps(codes, blocks, size, code), "code")
    said = _decoded(codes, code) * size[..., None]
    return PageVerdict(tuple(findings), torch.cat((said.flatten(1), rotary.to(torch.float64)), dim=-1))


def bytes_differ(got: torch.Tensor, expected: torch.Tensor, name: str) -> list[str]:
    """A finding where two pools are not the same to the bit."""
    different = _bytes(got) != _bytes(expected)
    if not different.any():
        return []
    place = different.nonzero()[0].tolist()
    return [f"{name}: {int(different.sum())} bytes are not those of the reference, the first at {place}"]


def _decoded(codes: torch.Tensor, code: str) -> torch.Tensor:
    if code == "e4m3":
        return codes.contiguous().view(torch.float8_e4m3fn).to(torch.float64)
    return quantized.codes.decode_e2m1(codes, dtype=torch.float64)


def _changed_elsewhere(after: Pool, before: torch.Tensor, index: torch.Tensor, name: str) -> list[str]:
    """A finding where bytes of rows other than ``index``, or of the padding of pages, are not as before."""
    changed = _bytes(after.data) != _bytes(before)
    if after.format is PoolFormat.PLAIN:
        changed.view(after.rows, -1)[index] = False
    else:
        view = Pool(changed.to(torch.uint8), after.format, after.page)
        for region in packed_views(view):
            region[index // after.page, index % after.page] = 0
        changed = view.data
    if not changed.any():
        return []
    place = changed.nonzero()[0].tolist()
    return [f"{name}: {int(changed.sum())} bytes that were not to be written have changed, the first at {place}"]


def _bytes(data: torch.Tensor) -> torch.Tensor:
    return data.contiguous().view(torch.uint8)
